"""A merged model in fewer bits: what is loaded again is what was quantized, or nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from report_inputs import merge_proof
from tiny_model import CHATML, build_model, build_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import finetune.quantizing
from evaluation.files import write_model
from evaluation.inference import LanguageModel, load_language_model
from evaluation.model import ModelSpec, Quantization, keep_cpu_weights_unpacked
from finetune.errors import DataError, ProofFailed
from finetune.quantizing import PROOF_FILE, QuantizedProof, export_quantized


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = build_tokenizer()
    build_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_plain_transformers_loads_what_was_quantized(model: Path, tmp_path: Path, kind: str) -> None:
    export_quantized(model, tmp_path / "out", kind)
    proof = QuantizedProof.model_validate_json((tmp_path / "out" / PROOF_FILE).read_bytes())
    assert proof.bytes < 0.6 * proof.bytes_before
    assert proof.probe_tokens > 100
    assert 0 < proof.mean_kl < 0.1
    assert [door.conversations for door in proof.doors] == [32]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    keep_cpu_weights_unpacked(plain)  # on AVX512-BF16, bitsandbytes answers from weights rounded once more
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "out")("Is it a fever?").input_ids])
    in_memory = load_language_model(ModelSpec(model, quantization=Quantization(kind), dtype="float32", device="cpu"))
    with torch.inference_mode():
        assert torch.equal(plain(input_ids=ids).logits, in_memory.causal_lm(input_ids=ids).logits)
    for path in (tmp_path / "out").iterdir():
        assert str(model).encode() not in path.read_bytes()


def test_it_stops_where_the_template_ends_answers(model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model, tmp_path / "model"))
    (other / "generation_config.json").write_text('{"eos_token_id": 0}')
    export_quantized(other, tmp_path / "out", "nf4")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id == [0, 2]


def test_what_was_damaged_on_the_way_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = finetune.quantizing._write

    def damaged(quantized: LanguageModel, source: Path, folder: Path) -> None:
        with torch.no_grad():
            quantized.causal_lm.model.norm.weight.mul_(1.01)
        write(quantized, source, folder)

    monkeypatch.setattr(finetune.quantizing, "_write", damaged)
    with pytest.raises(ProofFailed, match="loaded again, its logits differ"):
        export_quantized(model, tmp_path / "out", "nf4")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "kl"), [("nf4", 3.01), ("int8", 0.51), ("nf4", float("nan"))])
def test_predictions_of_another_model_are_refused(
    kind: str, kl: float, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune.quantizing, "mean_kl", lambda *_: kl)
    with pytest.raises(ProofFailed, match="it predicts otherwise"):
        export_quantized(model, tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()


def test_another_template_on_the_way_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = finetune.quantizing._write

    def changed(quantized: LanguageModel, source: Path, folder: Path) -> None:
        write(quantized, source, folder)
        (folder / "chat_template.jinja").write_text(CHATML.replace("<|im_end|>' + '\n'", "<|im_end|>'"))

    monkeypatch.setattr(finetune.quantizing, "_write", changed)
    with pytest.raises(ProofFailed, match="makes other tokens"):
        export_quantized(model, tmp_path / "out", "nf4")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("onto", "kind", "goes"),
    [("dequantized", "nf4", False), ("dequantized", "int8", True), ("full_precision", "nf4", True)],
)
def test_a_merge_is_not_rounded_to_the_grid_that_it_came_from(
    model: Path, tmp_path: Path, onto: str, kind: str, goes: bool
) -> None:
    shutil.copytree(model, tmp_path / "merged")
    write_model(tmp_path / "merged" / "merge.json", merge_proof().model_copy(update={"onto": onto}))
    if goes:
        export_quantized(tmp_path / "merged", tmp_path / "out", kind)
        return
    with pytest.raises(DataError, match="in NF4 again it is the base"):
        export_quantized(tmp_path / "merged", tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_quantized_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no model in this folder"):
        export_quantized(tmp_path, tmp_path / "out", "nf4")
    export_quantized(model, tmp_path / "out", "nf4")
    with pytest.raises(DataError, match="something there already"):
        export_quantized(model, tmp_path / "out", "int8")
    with pytest.raises(DataError, match="quantized already"):
        export_quantized(tmp_path / "out", tmp_path / "again", "int8")
