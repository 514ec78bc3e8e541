"""What only a GPU can show: TRL's own loss kernel, the paged optimizer, bfloat16 autocast, flash attention."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tiny_runs import Workplace, write_classification
from tiny_training import tiny_recipe

from finetune.capabilities import choose, this_machine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return write_classification(tmp_path)


def summary(place: Workplace) -> dict[str, object]:
    found: dict[str, object] = json.loads((place.folder / "run" / "training" / "summary.json").read_bytes())
    return found


def test_the_fast_paths_are_chosen() -> None:
    choices = choose(this_machine(), tiny_recipe(Path("base"), base={"dtype": "bfloat16"})).named()
    assert choices["autocast"] == "bfloat16"
    assert choices["layers"] == "plain"
    assert choices["optimizer"] == "paged_adamw_8bit"
    assert choices["loss"] == ("trl_fused" if importlib.util.find_spec("triton") else "labelled")


def test_qlora_in_bfloat16_trains_merges_and_is_scored(place: Workplace) -> None:
    outcome = place.run("--set", "base.dtype=bfloat16", "--set", "training.epochs=4", "--devices", "1")
    assert outcome.status == 0, outcome.stderr
    found = summary(place)
    assert str(found["device"]).startswith("cuda")
    losses = [json.loads(x)["loss"] for x in (place.folder / "run/training/metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_the_fused_loss_is_the_plain_loss(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="no Triton on this machine")
    losses = {}
    for name in ("trl_fused", "labelled"):
        if name == "labelled":
            monkeypatch.setattr("finetune.capabilities.find_spec", lambda _: None)
        out = place.folder / name
        assert place.run("--set", "quantization=null", out=out, command="train").status == 0
        losses[name] = json.loads((out / "training/metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert losses["trl_fused"] == pytest.approx(losses["labelled"], rel=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash-attn is not installed")
def test_flash_attention_is_used_and_learns(place: Workplace) -> None:
    outcome = place.run("--set", "base.dtype=bfloat16", command="train")
    assert outcome.status == 0, outcome.stderr
    choices = summary(place)["choices"]
    assert isinstance(choices, dict)
    assert choices["attention"] == "flash_attention_2"
