"""Training in two processes of a CPU against one: the same losses, and an end with a cause when a process fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import (
    Workplace,
    finetune_command,
    finetune_process,
    left_over,
    process_command,
    write_classification,
)

from finetune.run_directory import RunDirectory

pytestmark = pytest.mark.slow

# Four micro-batches to a step, on one process or two: the plan, and so every micro-batch, is the same.
STEPS = ("--set", "training.tokens_per_step=512", "--set", "training.tokens_per_micro_batch=128")
EXACT = 1e-6
PATIENCE_SECONDS = 30


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return write_classification(tmp_path_factory.mktemp("processes"), rows=120)


def losses(place: Workplace, out: Path, devices: int, *settings: str) -> list[float]:
    """Train with a number of processes, and return the loss of every step."""
    devices_option = ("--devices", str(devices))
    command = finetune_process if devices > 1 else finetune_command
    outcome = command(*place.arguments(*STEPS, *settings, *devices_option, out=out, command="train"))
    assert outcome.status == 0, outcome.stderr
    assert "Traceback" not in outcome.stderr
    summary = json.loads((out / "training" / "summary.json").read_bytes())
    assert summary["devices"] == devices
    assert left_over(out) == []
    return [json.loads(line)["loss"] for line in (out / "training" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "setting",
    ["quantization=null", "quantization={kind: nf4}", "training.batches=packed"],
    ids=["lora", "nf4", "packed"],
)
def test_two_processes_learn_as_one(place: Workplace, tmp_path: Path, setting: str) -> None:
    settings = ("--set", setting)
    one = losses(place, tmp_path / "one", 1, *settings)
    two = losses(place, tmp_path / "two", 2, *settings)
    assert len(one) >= 4
    assert two == pytest.approx(one, abs=EXACT, rel=0)
    first, second = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-3


def test_the_difference_in_bfloat16_is_reported(
    place: Workplace, tmp_path: Path, record_property: Callable[[str, float], None]
) -> None:
    one = losses(place, tmp_path / "one", 1, "--set", "base.dtype=bfloat16")
    two = losses(place, tmp_path / "two", 2, "--set", "base.dtype=bfloat16")
    difference = max(abs(a - b) for a, b in zip(one, two, strict=True))
    record_property("largest difference of a step's loss in bfloat16", difference)
    print(f"\nlargest difference of a step's loss in bfloat16, two processes against one: {difference:.2e}")  # noqa: T201
    assert difference < 0.05


def test_what_stops_a_worker_reaches_the_user(place: Workplace, tmp_path: Path) -> None:
    shutil.copytree(place.base, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    settings = ("--set", f"base.model={tmp_path / 'base'}", "--devices", "2")
    outcome = finetune_process(*place.arguments(*settings, out=tmp_path / "run", command="train"))
    assert outcome.status == 4
    assert "the loss is nan at step 1" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert len(outcome.stderr.splitlines()) < 24
    assert left_over(tmp_path / "run") == []


def test_a_worker_that_is_killed_ends_the_command_with_a_cause(place: Workplace, tmp_path: Path) -> None:
    settings = ("--set", "training.epochs=1000", "--devices", "2")
    command = process_command(*place.arguments(*STEPS, *settings, out=tmp_path, command="train"))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip().startswith("step "):
                break
        worker = max(workers_of(process.pid), key=lambda one: one.create_time())
        worker.kill()
        killed = time.monotonic()
        rest = process.stderr.read()
        status = process.wait(timeout=PATIENCE_SECONDS)
        assert time.monotonic() - killed < PATIENCE_SECONDS
    finally:
        end(process)
    assert status == 4
    assert "was killed (SIGKILL)" in rest
    assert "memory" in rest
    assert "Traceback" not in rest
    assert not RunDirectory(tmp_path).marker("train")
    assert not workers_left(tmp_path)


def test_torchrun_that_is_killed_ends_the_command_with_a_cause(place: Workplace, tmp_path: Path) -> None:
    settings = ("--set", "training.epochs=1000", "--devices", "2")
    command = process_command(*place.arguments(*STEPS, *settings, out=tmp_path, command="train"))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip().startswith("step "):
                break
        (torchrun,) = psutil.Process(process.pid).children()
        torchrun.kill()
        rest = process.stderr.read()  # the training processes hold it as well, and end with torchrun
        status = process.wait(timeout=PATIENCE_SECONDS)
    finally:
        end(process)
    assert status == 4
    assert "a training process died: torchrun was killed (SIGKILL)" in rest
    assert "Traceback" not in rest
    assert not workers_left(tmp_path)


def workers_of(pid: int) -> list[psutil.Process]:
    children = psutil.Process(pid).children(recursive=True)
    return [one for one in children if "finetune.training_process" in one.cmdline()]


def workers_left(folder: Path) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])]


def end(process: subprocess.Popen[str]) -> None:
    """End a process and its children, if they are still there."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()
    if process.stderr is not None:
        process.stderr.close()
