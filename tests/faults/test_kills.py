"""A run that is killed in any stage and started again ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny_runs import (
    Workplace,
    broken_promises,
    finetune_process,
    left_over,
    process_command,
    write_classification,
)

from finetune.adapter import adapter_hash
from finetune.run_directory import STAGES, RunDirectory, Stage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace with one uninterrupted run."""
    workplace = write_classification(tmp_path_factory.mktemp("kills"))
    outcome = finetune_process(*workplace.arguments())
    assert outcome.status == 0, outcome.stderr
    assert "Warning" not in outcome.stderr
    return workplace


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_completes_when_started_again(place: Workplace, stage: Stage, tmp_path: Path) -> None:
    uninterrupted = RunDirectory(place.folder / "run")
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(uninterrupted.folder, run.folder)
    for unfinished in STAGES[STAGES.index(stage) :]:
        run.forget(unfinished)
    marker = uninterrupted.marker(stage)
    assert marker is not None
    delay = random.Random(stage).uniform(0, 0.7) * marker.time.seconds

    kill_in(stage, process_command(*place.arguments(out=run.folder)), delay)

    assert not run.marker(stage), "a stage that was killed is not finished"
    assert broken_promises(run) == []
    again = place.run(out=run.folder)
    assert again.status == 0, again.stderr
    assert [s for s in STAGES if run.marker(s)] == list(STAGES)
    assert left_over(run.folder) == []
    assert adapter_hash(run.adapter) == adapter_hash(uninterrupted.adapter)
    assert (run.merged / "model.safetensors").read_bytes() == (uninterrupted.merged / "model.safetensors").read_bytes()


def kill_in(stage: Stage, command: list[str], delay: float) -> None:
    """Start a command, wait until it announces a stage and a little longer, and kill it with all its children."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith(f"{stage}: ") and "skipped" not in line:
                break
        else:
            pytest.fail(f"{stage} was never announced")
        time.sleep(delay)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()
        status = process.wait()
    assert status == -signal.SIGKILL, "the stage ended before it was killed"
