"""A GGUF file that is read back is the model that was written, with its tokenizer and its template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from tiny_model import build_tokenizer
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from finetune.errors import DataError, ProofFailed
from finetune.exporting import LARGEST_KL, Extras, export_model, prove_export
from finetune.gguf import load_gguf
from finetune.gguf_export import FILE_TYPES, Kind, export_gguf
from finetune.gguf_tokenizer import LLAMA3_CUT

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
EXACT = {"f32": 0.0, "bf16": 0.05, "f16": 0.01, "q8_0": 0.1, "q4_1": 0.6, "q4_0": 0.6}
"""Largest difference of logits, as a share of the largest: the kinds' own rounding, on random weights."""


def write_model(folder: Path, tied: bool = True, **settings: Any) -> Path:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 12,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        **settings,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.inference_mode()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=torch.arange(0, 320, 5).reshape(2, 32)).logits


def differs(folder: Path, file: Path) -> float:
    before = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    model, _ = load_gguf(file.parent, file.name)
    return float((logits(model.eval()) - before).abs().max() / before.abs().max())


@pytest.mark.parametrize("kind", FILE_TYPES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_read_back_it_is_the_model(kind: str, tied: bool, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", tied)
    export_gguf(folder, tmp_path / "out.gguf", kind, "tiny")  # type: ignore[arg-type]
    assert differs(folder, tmp_path / "out.gguf") <= EXACT[kind]


@pytest.mark.parametrize(
    "rope", [LLAMA3_ROPE, {"rope_type": "default", "rope_theta": 77_000.0}], ids=["llama3", "plain"]
)
def test_rotary_embeddings_are_kept(rope: dict[str, object], tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", rope_parameters=rope)
    export_gguf(folder, tmp_path / "out.gguf", "f32", "tiny")
    fields = GGUFReader(tmp_path / "out.gguf").fields
    assert fields["llama.rope.freq_base"].contents() == pytest.approx(rope["rope_theta"])


def test_llama_3_frequencies_are_those_of_transformers(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", rope_parameters=LLAMA3_ROPE)
    export_gguf(folder, tmp_path / "out.gguf", "f32", "tiny")
    (factors,) = (one for one in GGUFReader(tmp_path / "out.gguf").tensors if one.name == "rope_freqs.weight")
    model = AutoModelForCausalLM.from_pretrained(folder)
    plain = 500_000.0 ** -(torch.arange(0, 16, 2) / 16)
    assert torch.allclose(plain / torch.from_numpy(factors.data.copy()), model.model.rotary_emb.inv_freq, rtol=1e-5)


@pytest.mark.parametrize(
    "rope", [LLAMA3_ROPE, {"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 2.0}]
)
@pytest.mark.parametrize("kind", ["f32", "bf16"])
def test_scaled_rotary_embeddings_pass_the_proof(rope: dict[str, object], kind: Kind, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": rope, "rope_theta": 500_000.0}))
    export_gguf(folder, tmp_path / "out.gguf", kind, "tiny")
    assert prove_export(folder, tmp_path / "out.gguf", kind).agreement > 0.97


@pytest.mark.parametrize("kind", ["q8_0", "q4_1", "q4_0"])
def test_rounding_passes_the_proof_and_another_models_weights_do_not(kind: Kind, tmp_path: Path) -> None:
    folder, other = write_model(tmp_path / "model"), write_model(tmp_path / "other")
    export_gguf(folder, tmp_path / "own.gguf", kind, "tiny")
    assert prove_export(folder, tmp_path / "own.gguf", kind).mean_kl < LARGEST_KL[kind] / 50
    model = AutoModelForCausalLM.from_pretrained(other)
    for spoilt in (lambda weight: weight.flip(0) * 10, lambda weight: weight * float("nan")):
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(spoilt(model.model.embed_tokens.weight))
        model.save_pretrained(other)
        export_gguf(other, tmp_path / "other.gguf", kind, "tiny")
        with pytest.raises(ProofFailed, match="predicts otherwise"):
            prove_export(folder, tmp_path / "other.gguf", kind)


def test_a_scaling_that_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": {"type": "yarn", "factor": 4.0}}))
    with pytest.raises(DataError, match="rotary scaling 'yarn'"):
        export_gguf(folder, tmp_path / "out.gguf", "f32", "tiny")


def test_a_tokenizer_that_changes_text_first_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.save_pretrained(folder)
    with pytest.raises(DataError, match="changes text before it cuts it"):
        export_gguf(folder, tmp_path / "out.gguf", "f32", "tiny")


def test_tokens_and_template_are_kept(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    export_gguf(folder, tmp_path / "out.gguf", "f32", "tiny")
    _, tokenizer = load_gguf(tmp_path, "out.gguf")
    before = build_tokenizer()
    for text in ("The patient has a fever.", "<|im_start|>user\nhello 123 你好 🙂<|im_end|>\n", "  \n\t x"):
        assert tokenizer(text).input_ids == before(text).input_ids
    assert tokenizer.chat_template == before.chat_template
    assert (tokenizer.eos_token, tokenizer.bos_token) == (before.eos_token, before.bos_token)


@pytest.mark.parametrize(
    ("cut", "word"),
    [
        ([pre_tokenizers.ByteLevel(add_prefix_space=False)], "gpt-2"),
        ([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)], "smollm"),
        (
            [
                pre_tokenizers.Split(Regex(LLAMA3_CUT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ],
            "llama-bpe",
        ),
        ([pre_tokenizers.Whitespace()], None),
        ([pre_tokenizers.ByteLevel(add_prefix_space=True)], None),
        ([pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)], None),
    ],
)
def test_a_tokenizer_that_no_word_describes_is_refused(cut: list[Any], word: str | None, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut)
    tokenizer.save_pretrained(folder)
    if word is None:
        with pytest.raises(DataError, match="cuts text in a way that GGUF has no word for"):
            export_gguf(folder, tmp_path / "out.gguf", "f32", "tiny")
        assert not (tmp_path / "out.gguf").exists()
    else:
        export_gguf(folder, tmp_path / "out.gguf", "f32", "tiny")
        assert GGUFReader(tmp_path / "out.gguf").fields["tokenizer.ggml.pre"].contents() == word


def test_what_float16_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e6
    model.save_pretrained(folder)
    with pytest.raises(DataError, match="float16 cannot hold"):
        export_gguf(folder, tmp_path / "out.gguf", "f16", "tiny")


def test_a_file_is_called_as_it_is_said_and_not_after_its_folder(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "client-acme")
    for extras, name in ((Extras(llama_cpp=False, name="tiny"), "tiny"), (Extras(llama_cpp=False), "client-acme")):
        export_model(folder, tmp_path / "out.gguf", "f32", extras)
        assert GGUFReader(tmp_path / "out.gguf").fields["general.name"].contents() == name
