"""Kills on the real 135M base; it takes long, so it is measured by `--figures` alone."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from figures import Figures
from fork_server import fork_server, wait_for

from finetune.adapter import adapter_hash
from finetune.run_directory import RunDirectory

pytestmark = pytest.mark.slow

KILLS = 10
MACHINE_CANNOT = 6
SETTINGS = {
    "data.train.0.limit": "32",
    "data.validation.limit": "8",
    "data.held_out.limit": "8",
    "training.tokens_per_step": "512",
    "training.tokens_per_micro_batch": "256",
    "training.checkpoints.every_steps": "1",
    "adapter.dropout": "0.1",
}


def test_the_real_base_goes_on_to_the_same_adapter(figures: Figures, tmp_path: Path) -> None:
    if not figures.full:
        pytest.skip("takes a quarter of an hour or more; --figures runs it")
    options = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]

    def arguments(name: str) -> list[str]:
        return ["train", "icd10-quickstart", *options, "--out", str(tmp_path / name)]

    with fork_server() as server:
        status = server.run(arguments("straight"), tmp_path / "stderr")
        if status == MACHINE_CANNOT:
            pytest.skip(f"the base could not be fetched: {(tmp_path / 'stderr').read_text()[-300:]}")
        assert status == 0, (tmp_path / "stderr").read_text()
        straight = RunDirectory(tmp_path / "straight")
        marker = straight.marker("train")
        assert marker is not None
        sha256, draw, failures, resumed = adapter_hash(straight.adapter), random.Random(0), [], 0
        kills = 0
        while kills < KILLS:
            shutil.copytree(straight.folder, tmp_path / "run")
            run = RunDirectory(tmp_path / "run")
            run.forget("train")
            child = server.start(arguments("run"), tmp_path / "stderr")
            assert wait_for(child, "  step 1/")
            time.sleep(draw.uniform(0, 0.4) * marker.time.seconds)
            child.send(signal.SIGKILL)
            if child.wait() != -signal.SIGKILL:
                shutil.rmtree(run.folder)
                continue  # it had ended before
            kills += 1
            again = server.run(arguments("run"), tmp_path / "again")
            resumed += "going on after step" in (tmp_path / "again").read_text()
            if again != 0 or adapter_hash(run.adapter) != sha256:
                failures.append(f"{kills}: {again}: {(tmp_path / 'again').read_text()}")
            shutil.rmtree(run.folder)
    claim = "SIGKILL in the training of SmolLM2-135M (NF4, dropout), run again: the same adapter"
    figures.report("Kills", claim, KILLS, "kills", len(failures), f"{resumed} went on from a checkpoint")
    assert failures == []
