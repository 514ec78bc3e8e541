"""How long one waits before anything happens: `python -m benchmarks.startup`.

Every round runs the same four commands one after another: `finetune --help`, `finetune check`, importing torch and
TRL's SFTTrainer in a bare process, and `finetune train` on prepared data, which is killed once its first step stands in
the metrics. A first round, not counted, has Python write its bytecode. "Beyond the imports" is the training's time less
the bare process's of the same round. Seconds are those on the clock; those of processors stand beside them, since a
busy machine makes the first longer and hardly the second.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.spread import machine_line, spread, table

RECIPE = "icd10-quickstart"
IMPORTS = "import torch; from trl import SFTTrainer"
LONGEST_SECONDS = 600
LOOKED_EVERY = 0.01
COMMAND = [sys.executable, "-m", "finetune.cli"]


@dataclass(frozen=True)
class Took:
    """One command: seconds on the clock, and of processors."""

    clock: float
    processors: float

    def beyond(self, other: Took) -> Took:
        """Return what this took more than another."""
        return Took(self.clock - other.clock, self.processors - other.processors)


def timed(command: Sequence[str], ended: Callable[[], bool] | None = None) -> Took:
    """Run a command to its end, or kill it when `ended` says so.

    Raises:
        RuntimeError: it fails, or takes too long.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env=environment)
        killed = False
        while (found := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            if ended is not None and ended():
                clock, killed = time.perf_counter() - began, True
                process.kill()
                found = os.wait4(process.pid, 0)
                break
            if time.perf_counter() - began > LONGEST_SECONDS:
                process.kill()
            time.sleep(LOOKED_EVERY)
        else:
            clock = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(found[1])  # reaped here, not by Popen
        if not killed and process.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said.read().decode()[-2000:]}")
    return Took(clock, found[2].ru_utime + found[2].ru_stime)


def first_step(run: Path) -> dict[str, float] | None:
    """Read the first line of a training's metrics, once it is there."""
    for file in run.rglob("metrics.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines and lines[0].endswith("\n"):
            found: dict[str, float] = json.loads(lines[0])
            return found
    return None


def train_to_first_step(run: Path, settings: Sequence[str]) -> tuple[Took, float]:
    """Train until the first step is written; also return the seconds from the trainer's start to that step's end."""
    for staged in run.glob(".*training"):
        shutil.rmtree(staged)
    command = [*COMMAND, "train", RECIPE, "--out", str(run), "--restart", *settings]
    took = timed(command, lambda: first_step(run) is not None)
    step = first_step(run)
    assert step is not None
    return took, step["seconds"]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="as `finetune train --set`")
    given = parser.parse_args()
    settings = [word for setting in given.settings for word in ("--set", setting)]
    measured: dict[str, list[Took]] = {
        name: [] for name in ("finetune --help", "finetune check", "imports alone", "first step", "beyond the imports")
    }
    steps: list[float] = []
    folder = Path(tempfile.mkdtemp(prefix="startup-"))
    try:
        run = folder / "run"
        timed([*COMMAND, "prepare", RECIPE, "--out", str(run), *settings])
        for number in range(given.rounds + 1):
            imports = timed([sys.executable, "-c", IMPORTS])
            training, step = train_to_first_step(run, settings)
            row = (
                timed([*COMMAND, "--help"]),
                timed([*COMMAND, "check", RECIPE]),
                imports,
                training,
                training.beyond(imports),
            )
            if number:
                steps.append(step)
                for name, took in zip(measured, row, strict=True):
                    measured[name].append(took)
    finally:
        shutil.rmtree(folder)
    rows = [
        [name, str(len(took)), spread([one.clock for one in took]), spread([one.processors for one in took])]
        for name, took in measured.items()
    ]
    rows.append(["of it the trainer: the step, and a trial where there is one", str(len(steps)), spread(steps), ""])
    print(table(["", "n", "seconds (least / median / most)", "seconds of processors"], rows))
    print(f"\n{machine_line('torch', 'trl', 'transformers', 'bitsandbytes')}")


if __name__ == "__main__":
    main()
