"""An interrupted `finetune run`: what it says, what the next one takes up, and what it refuses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tiny_model import write_tiny_base
from tiny_runs import (
    Outcome,
    Workplace,
    finetune_process,
    hear_ctrl_c,
    left_over,
    process_command,
    write_instructions,
)

from finetune.adapter import adapter_hash
from finetune.checkpoints import checkpoints, read_progress
from finetune.console import TrainingBar
from finetune.run_directory import RunDirectory
from finetune.signals import ONE_PRESS
from finetune.training_records import TrainingSummary

pytestmark = pytest.mark.slow

SHORT = ("--set", "training.tokens_per_step=256", "--set", "adapter.dropout=0.2")
LONG = ("--set", "training.epochs=500", "--set", "training.tokens_per_step=512")
TWO = (
    *("--devices", "2", "--set", "training.tokens_per_micro_batch=128", "--set", "training.tokens_per_step=256"),
    *("--set", "adapter.dropout=0.2", "--set", "training.epochs=30"),
)
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, Outcome]:
    """A run that heard SIGTERM in its second step."""
    place = write_instructions(tmp_path_factory.mktemp("interrupted"))
    own = place.folder / "own.yaml"
    own.write_text(
        (Path(__file__).parents[2] / "data_templates" / "alpaca.yaml").read_text().replace("name: alpaca", "name: own")
    )
    place.recipe.write_text(place.recipe.read_text().replace("rows: alpaca", f"rows: {own}"))
    update = TrainingBar.update

    def ask(bar: TrainingBar, step: int, *rest: object) -> None:
        update(bar, step, *rest)  # type: ignore[arg-type]
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingBar, "update", ask)
        return place, place.run(*SHORT)


@pytest.fixture
def place(interrupted: tuple[Workplace, Outcome], tmp_path: Path) -> Workplace:
    """A copy of it, to be gone on with; rows, template and base stay where they were."""
    shutil.copytree(interrupted[0].folder / "run", tmp_path / "run")
    return interrupted[0]


def test_it_says_where_it_stopped(interrupted: tuple[Workplace, Outcome]) -> None:
    place, outcome = interrupted
    assert outcome.status == 143
    assert "stopped after step 3 of" in outcome.stderr
    assert "the same command goes on from there" in outcome.stderr
    run = RunDirectory(place.folder / "run")
    assert [read_progress(folder).step for folder in checkpoints(run.checkpoints)] == [3]
    assert not run.adapter.exists()


def test_the_stages_time_and_memory_are_those_of_all_its_parts(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, earlier = RunDirectory(tmp_path / "run"), read_progress(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert earlier.seconds > 0
    assert earlier.peak_memory_bytes > 2**27, "as much as torch alone takes"
    before = earlier.model_copy(update={"seconds": 10_000.0, "peak_memory_bytes": 2**50})
    monkeypatch.setattr("finetune.pipeline.read_progress", lambda _: before)
    again = place.run(*SHORT, out=run.folder, command="train")
    assert again.status == 0, again.stderr
    marker = run.marker("train")
    assert marker is not None
    assert 10_000 < marker.time.seconds < 11_000
    assert marker.time.peak_memory_bytes == 2**50


def test_the_same_command_goes_on_and_the_report_says_so(place: Workplace, tmp_path: Path) -> None:
    straight = place.run(*SHORT, out=tmp_path / "straight", command="train")
    assert straight.status == 0, straight.stderr
    again = place.run(*SHORT, "--set", "training.checkpoints.every_steps=100", out=tmp_path / "run")
    assert again.status == 0, again.stderr
    assert "going on after step 3" in again.stderr
    run = RunDirectory(tmp_path / "run")
    assert adapter_hash(run.adapter) == adapter_hash(tmp_path / "straight" / "adapter")
    assert not run.checkpoints.exists()
    assert left_over(run.folder) == []
    told = TrainingSummary.model_validate_json((run.training / "summary.json").read_bytes())
    assert told.resumed_after == (3,)
    page = (run.folder / "report.md").read_text()
    assert "gone on with after step" in page
    assert "went on from a checkpoint" in page


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("training.learning_rate=0.01", "training"),
        ("adapter.rank=8", "adapter"),
        ("seed=9", "seed"),
        ("base.dtype=bfloat16", "base.dtype"),
        ("data.train.0.limit=20", "prepared examples (data)"),
    ],
)
def test_a_changed_recipe_is_refused_by_name(place: Workplace, tmp_path: Path, setting: str, named: str) -> None:
    outcome = place.run(*SHORT, "--set", setting, out=tmp_path / "run", command="train")
    assert outcome.status == 3, outcome.stderr
    assert "interrupted after step 3, and these changed since" in outcome.stderr
    assert named in outcome.stderr
    assert "--restart" in outcome.stderr
    assert len(checkpoints(tmp_path / "run" / "checkpoints")) == 1
    assert not (tmp_path / "run" / "adapter").exists()
    back = place.run(*SHORT, out=tmp_path / "run", command="train")
    assert back.status == 0, back.stderr
    assert "going on after step 3" in back.stderr


def test_changed_rows_and_template_and_base_are_refused_by_name(place: Workplace, tmp_path: Path) -> None:
    def refused() -> str:
        outcome = place.run(*SHORT, out=tmp_path / "run", command="train")
        assert outcome.status == 3, outcome.stderr
        return " ".join(outcome.stderr.split())

    rows, template = place.folder / "rows.csv", place.folder / "own.yaml"
    with changed(rows, "fever", "rash"):
        assert f"prepared examples ({rows})" in refused()
    with changed(template, "{{ instruction }}", "{{ instruction }}!"):
        assert f"prepared examples ({template})" in refused()
    write_tiny_base(tmp_path / "other", seed=3)
    weights = place.base / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    assert "changed since: base" in refused()
    weights.write_bytes(before)


@contextmanager
def changed(file: Path, old: str, new: str) -> Iterator[None]:
    """Change a file for a while."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    yield
    file.write_text(text)


def test_restart_trains_anew(place: Workplace, tmp_path: Path) -> None:
    changed = ("--set", "training.learning_rate=0.01")
    outcome = place.run(*SHORT, *changed, "--restart", out=tmp_path / "run", command="train")
    assert outcome.status == 0, outcome.stderr
    assert "going on" not in outcome.stderr
    told = TrainingSummary.model_validate_json((tmp_path / "run" / "training" / "summary.json").read_bytes())
    assert told.resumed_after == ()


# ------------------------------------------------------------------ real processes


def begun(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a command and wait until it has trained a while."""
    process = subprocess.Popen(process_command(*arguments), stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.strip().startswith("step "):
            return process
    pytest.fail(said)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return write_instructions(tmp_path_factory.mktemp("processes"))


def test_a_second_ctrl_c_ends_at_once_and_nothing_is_broken(rows: Workplace, tmp_path: Path) -> None:
    process = begun(rows.arguments(*LONG, out=tmp_path / "run", command="train"))
    process.send_signal(
        signal.SIGSTOP
    )  # so that the first is answered when the second has come, however quick a step is
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    time.sleep(ONE_PRESS + 0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode in {-signal.SIGINT, 130}, said
    assert "Traceback" not in said


def test_two_processes_stop_after_the_same_step_and_end_where_they_would_have(rows: Workplace, tmp_path: Path) -> None:
    def arguments(name: str) -> list[str]:
        return rows.arguments(*TWO, out=tmp_path / name, command="train")

    straight = finetune_process(*arguments("straight"))
    assert straight.status == 0, straight.stderr
    process = begun(arguments("run"))
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 143, said
    assert time.monotonic() - asked < 10
    assert "which is saved" in said
    assert "Traceback" not in said
    assert left_over(tmp_path / "run") == []
    saved = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert {"random-0.json", "random-1.json"} <= {path.name for path in saved.iterdir()}
    step = read_progress(saved).step
    again = finetune_process(*arguments("run"))
    assert again.status == 0, again.stderr
    assert f"going on after step {step}" in again.stderr
    assert adapter_hash(tmp_path / "run" / "adapter") == adapter_hash(tmp_path / "straight" / "adapter")
