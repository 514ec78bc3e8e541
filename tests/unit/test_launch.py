"""How many processes are started, and what is said of the one that failed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from finetune.errors import DataError, MachineError, TrainingStopped
from finetune.launch import ERROR_FILE, count_devices, launch_training
from finetune.signals import Signals
from finetune.training_job import TrainingJob


@pytest.mark.parametrize(
    ("gpus", "wanted", "expected"), [(0, "all", 1), (0, 2, 2), (4, "all", 4), (4, 1, 1), (4, 4, 4)]
)
def test_devices_are_counted(monkeypatch: pytest.MonkeyPatch, gpus: int, wanted: int | str, expected: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert count_devices(wanted) == expected  # type: ignore[arg-type]


def test_more_gpus_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(MachineError, match="3 GPUs are asked for and 2 are here"):
        count_devices(3)


@pytest.mark.parametrize("kind", [DataError, MachineError, TrainingStopped])
def test_what_a_process_wrote_is_raised_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    job = TrainingJob.model_construct(run_folder=tmp_path, devices=2)

    def failing(*_: object, **__: object) -> Failed:
        said = {"kind": kind.__name__, "what": "what", "where": "where", "hint": "hint"}
        (tmp_path / ERROR_FILE).write_text(json.dumps(said))
        return Failed()

    monkeypatch.setattr("finetune.launch.subprocess.run", failing)
    monkeypatch.setattr(TrainingJob, "model_dump_json", lambda _: "{}")
    with pytest.raises(kind, match="what") as caught:
        launch_training(job, None, Signals())  # type: ignore[arg-type]
    assert vars(caught.value)["hint"] == "hint"
    assert list(tmp_path.iterdir()) == [], "nothing is left of the job"


def test_a_process_that_says_nothing_has_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = TrainingJob.model_construct(run_folder=tmp_path, devices=2)
    monkeypatch.setattr("finetune.launch.subprocess.run", lambda *_, **__: Failed())
    monkeypatch.setattr(TrainingJob, "model_dump_json", lambda _: "{}")
    with pytest.raises(TrainingStopped, match="a training process died"):
        launch_training(job, None, Signals())  # type: ignore[arg-type]


class Failed:
    """A process that ended with 1."""

    returncode = 1
