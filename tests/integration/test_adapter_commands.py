"""`finetune adapter` and `finetune export` as a person types them, on adapters made with plain peft."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_model import write_tiny_base
from tiny_runs import finetune_command, left_over
from transformers import AutoModelForCausalLM, AutoTokenizer

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
