"""`finetune adapter` and `finetune export` as a person types them, on adapters made with plain peft."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_model import write_tiny_base
from tiny_runs import finetune_command, left_over
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune import exporting
from finetune.peft_weights import open_peft_folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and two adapters of it."""
    folder = tmp_path_factory.mktemp("place")
    write_tiny_base(folder / "base")
    for number in (1, 2):
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        adapted.save_pretrained(folder / f"lora-{number}")
        AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / f"lora-{number}")
    return folder


def test_list_show_check_diff(place: Path) -> None:
    listed = finetune_command("adapter", "list", str(place))
    assert listed.status == 0, listed.stderr
    assert listed.stdout.count("LoRA") == 2
    shown = finetune_command("adapter", "show", str(place / "lora-1"))
    assert "rank 4" in shown.stdout
    assert "64×128" in shown.stdout
    checked = finetune_command("adapter", "check", str(place / "lora-1"), "--base", str(place / "base"))
    assert "14 modules, all finite, all fit base" in checked.stdout
    compared = finetune_command("adapter", "diff", str(place / "lora-1"), str(place / "lora-1"))
    assert "over all: cosine +1.000" in compared.stdout


def test_a_merge_answers_as_the_two_together_and_has_its_proof(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    done = finetune_command("adapter", "merge", str(place / "lora-1"), "--out", str(out), "--dtype", "float32")
    assert done.status == 0, done.stderr
    proof = json.loads((out / "merge.json").read_text())
    assert proof["largest_error"] <= 1e-5
    assert len(proof["modules"]) == 14
    assert AutoModelForCausalLM.from_pretrained(out).config.tie_word_embeddings
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert str(place) not in (out / "config.json").read_text()
    assert left_over(tmp_path) == []


def test_two_become_one(place: Path, tmp_path: Path) -> None:
    folders = [f"{place / 'lora-1'}=0.7", f"{place / 'lora-2'}=0.3"]
    for how in ("cat", "sum", "ties", "dare"):
        out = tmp_path / how
        done = finetune_command("adapter", "combine", *folders, "--how", how, "--out", str(out))
        assert done.status == 0, done.stderr
        assert "of the change on average" in done.stderr
        merged = finetune_command(
            "adapter", "merge", str(out), "--base", str(place / "base"), "--out", str(tmp_path / f"{how}-merged")
        )
        assert merged.status == 0, merged.stderr
    assert open_peft_folder(tmp_path / "cat").config.r == 8
    assert open_peft_folder(tmp_path / "sum").config.r == 4


def test_what_is_extracted_from_a_merge_is_the_adapter(place: Path, tmp_path: Path) -> None:
    merged, out = tmp_path / "merged", tmp_path / "extracted"
    finetune_command("adapter", "merge", str(place / "lora-1"), "--out", str(merged), "--dtype", "float32")
    done = finetune_command(
        "adapter", "extract", str(merged), "--base", str(place / "base"), "--rank", "4", "--out", str(out)
    )
    assert done.status == 0, done.stderr
    assert "keeps 100.0% of the difference" in done.stderr
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    compared = finetune_command("adapter", "diff", str(out), str(place / "lora-1"))
    assert "over all: cosine +1.000" in compared.stdout


def test_nothing_to_extract(place: Path, tmp_path: Path) -> None:
    base = str(place / "base")
    done = finetune_command("adapter", "extract", base, "--base", base, "--out", str(tmp_path / "out"))
    assert done.status == 3
    assert "there is nothing to extract" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_no_number(place: Path, tmp_path: Path) -> None:
    done = finetune_command("adapter", "combine", f"{place / 'lora-1'}=much", "--out", str(tmp_path / "out"))
    assert done.status == 2
    assert "'much' is no weight" in done.stderr


@pytest.mark.parametrize("kind", ["bf16", "q8_0"])
def test_export_writes_the_file_and_its_proof(kind: str, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.gguf"
    done = finetune_command("export", str(place / "base"), "--gguf", kind, "--out", str(out))
    assert done.status == 0, done.stderr
    proof = json.loads((tmp_path / "model.gguf.json").read_text())
    assert proof["probe_texts"] == 7
    assert proof["agreement"] > 0.9
    assert "tokens equal" in done.stderr


def test_nothing_to_export(tmp_path: Path) -> None:
    done = finetune_command("export", str(tmp_path), "--out", str(tmp_path / "model.gguf"))
    assert done.status == 3
    assert "no model in this folder" in done.stderr


@pytest.mark.parametrize("command", ["merge", "combine", "extract"])
def test_nothing_is_written_over(command: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    model = place / ("base" if command == "extract" else "lora-1")
    given = ["--base", str(place / "base")] if command != "combine" else []
    done = finetune_command("adapter", command, str(model), *given, "--out", str(tmp_path))
    assert done.status == 3
    assert "there is something there already" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_tied_model_that_was_tuned_whole(place: Path, tmp_path: Path) -> None:
    """Its embedding is input and output, and peft ties neither for a module that is saved."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "tuned")
    extracted = finetune_command(
        "adapter", "extract", str(tmp_path / "tuned"), "--base", str(place / "base"), "--rank", "64",
        "--out", str(tmp_path / "lora"),
    )  # fmt: skip
    assert extracted.status == 0, extracted.stderr
    ids = torch.arange(0, 320, 5).reshape(4, 16)
    base = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    with torch.inference_mode():
        expected, found = model.eval()(input_ids=ids).logits, adapted(input_ids=ids).logits
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-4


def test_only_norms_differ(place: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(tmp_path / "tuned")
    done = finetune_command(
        "adapter", "extract", str(tmp_path / "tuned"), "--base", str(place / "base"), "--out", str(tmp_path / "lora")
    )
    assert done.status == 0, done.stderr
    base = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "lora")
    assert "model.norm" in done.stderr
    assert torch.equal(adapted.get_base_model().model.norm.modules_to_save["default"].weight, model.model.norm.weight)


def test_a_file_that_is_not_proven_is_not_kept(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "model.gguf"
    assert finetune_command("export", str(place / "base"), "--gguf", "bf16", "--out", str(out)).status == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(exporting, "LARGEST_KL", {"f16": -1.0})
    done = finetune_command("export", str(place / "base"), "--gguf", "f16", "--out", str(out))
    assert done.status == 5
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
