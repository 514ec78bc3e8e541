"""Two runs beside each other: what counts as the same, and what is named where they differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from finetune.records import StageTime
from finetune.repetition import Repetition, compare_outcomes, compare_weights
from finetune.run_directory import OUTPUTS, STAGES, RunDirectory

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.tensor(2.0)}


def write_run(folder: Path, seconds: float = 1.0) -> RunDirectory:
    """Write a finished run whose files are small and its times its own."""
    run = RunDirectory(folder)
    for stage in STAGES:
        for name in OUTPUTS[stage]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if "." in name:
                (folder / name).write_text(json.dumps({"seconds": seconds, "seed": 0}), encoding="utf-8")
            else:
                (folder / name).mkdir()
    (run.data / "train.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    (run.training / "metrics.jsonl").write_text(json.dumps({"loss": 1.5, "seconds": seconds}) + "\n")
    save_file(WEIGHTS, run.adapter / "adapter_model.safetensors")
    save_file(WEIGHTS, run.merged / "model.safetensors")
    time = StageTime(stage="train", seconds=seconds, peak_memory_bytes=1)
    for stage in STAGES:
        run.finish(stage, {}, time)
    return run


@pytest.fixture
def pair(tmp_path: Path) -> tuple[RunDirectory, RunDirectory]:
    return write_run(tmp_path / "one"), write_run(tmp_path / "other", seconds=2.0)


def test_runs_that_differ_in_their_times_alone_are_the_same(pair: tuple[RunDirectory, RunDirectory]) -> None:
    found = compare_outcomes(*pair)
    assert found == Repetition(compared=5, files=(), scores=())
    assert found.identical


def test_the_first_tensor_is_named_with_the_largest_difference(pair: tuple[RunDirectory, RunDirectory]) -> None:
    changed = {**WEIGHTS, "b": WEIGHTS["b"] * 1.5, "c": torch.tensor(2.25)}
    save_file(changed, pair[1].adapter / "adapter_model.safetensors")
    found = compare_outcomes(*pair)
    assert not found.identical
    [file] = found.files
    assert str(file) == "adapter/adapter_model.safetensors: 2 of 3 tensors differ, first b, by at most 0.5"


def test_a_row_that_speaks_of_seconds_is_a_row(pair: tuple[RunDirectory, RunDirectory]) -> None:
    (pair[1].data / "train.jsonl").write_text('{"a": 1, "seconds": 2}\n', encoding="utf-8")
    assert [str(file) for file in compare_outcomes(*pair).files] == ["data/train.jsonl differs"]


def test_a_loss_in_its_last_digit_is_a_difference(pair: tuple[RunDirectory, RunDirectory]) -> None:
    (pair[1].training / "metrics.jsonl").write_text(json.dumps({"loss": 1.5000000000000002, "seconds": 9}) + "\n")
    assert [str(file) for file in compare_outcomes(*pair).files] == ["training/metrics.jsonl differs"]


def test_a_file_of_one_run_alone_is_a_difference(pair: tuple[RunDirectory, RunDirectory]) -> None:
    (pair[1].data / "extra.json").write_text("{}")
    (pair[0].merged / "model.safetensors").unlink()
    assert [str(file) for file in compare_outcomes(*pair).files] == [
        "data/extra.json is in one of them only",
        "merged/model.safetensors is in one of them only",
    ]


def test_stages_that_the_first_run_has_not_finished_are_left_out(pair: tuple[RunDirectory, RunDirectory]) -> None:
    shutil.rmtree(pair[0].merged)
    (pair[0].folder / "stages" / "merge.json").unlink()
    assert compare_outcomes(*pair).identical


@pytest.mark.parametrize(
    ("other", "largest"),
    [
        ({"a": WEIGHTS["a"].to(torch.float64)}, torch.inf),
        ({"a": WEIGHTS["a"].reshape(3, 2)}, torch.inf),
        ({"b": torch.full((4,), torch.nan, dtype=torch.bfloat16)}, torch.inf),
        ({"d": torch.zeros(1)}, torch.inf),
        ({"a": WEIGHTS["a"] + torch.eye(2, 3) * 2**-20}, 2**-20),
        ({"c": torch.tensor(-0.0)}, 2.0),
    ],
)
def test_weights_differ_by_bits(other: dict[str, torch.Tensor], largest: float, tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "one.safetensors")
    save_file({**WEIGHTS, **other}, tmp_path / "other.safetensors")
    found = compare_weights(tmp_path / "one.safetensors", tmp_path / "other.safetensors")
    assert found is not None
    assert (found.name, found.largest) == (next(iter(other)), largest)


def test_a_negative_zero_is_another_bit(tmp_path: Path) -> None:
    for name, value in (("one", 0.0), ("other", -0.0)):
        save_file({"a": torch.full((3,), value), "s": torch.tensor(value)}, tmp_path / f"{name}.safetensors")
    found = compare_weights(tmp_path / "one.safetensors", tmp_path / "other.safetensors")
    assert found is not None
    assert (found.differing, found.largest) == (2, 0.0)
