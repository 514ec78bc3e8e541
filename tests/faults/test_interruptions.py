"""A run that is killed or asked to end at any instant is gone on with by the same command, to the same adapter.

`pytest -n 0 tests/faults/test_interruptions.py --figures` does so two hundred times.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from figures import Figures
from fork_server import Forked, ForkServer, fork_server, wait_for
from tiny_runs import Workplace, broken_promises, left_over, write_classification

from finetune.adapter import adapter_hash
from finetune.checkpoints import checkpoints, read_progress
from finetune.run_directory import STAGES, RunDirectory

pytestmark = pytest.mark.slow

SETTINGS = {
    "training.checkpoints.every_steps": "1",
    "training.epochs": "3",
    "training.tokens_per_step": "256",
    "training.tokens_per_micro_batch": "128",
    "training.validations": "15",
    "adapter.dropout": "0.2",
}
"""QLoRA with dropout and two micro-batches a step; a validation and a checkpoint after every one of 15 steps."""
OPTIONS = tuple(word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}"))
LONGEST_END = 10.0
"""Seconds from SIGTERM to the end of the process."""

WORDS = {
    "prepare": ("prepare: not",),
    "load": ("loading the base",),
    "train": ("step 1/15",),
    "eval": ("step 8/15",),
    "merge": ("merge: not",),
    "score": ("evaluate: not",),
    "report": ("report: not",),
}
"""Stage → what is said when it begins; `eval` is the validations in training, of which each step has one."""


@dataclass(frozen=True)
class Straight:
    """A run that nobody interrupted."""

    place: Workplace
    server: ForkServer
    sha256: str
    seconds: float
    began: dict[str, float]
    """Stage → seconds after the start."""

    def arguments(self, folder: Path) -> list[str]:
        """Spell out the same run in another folder, with a cache of its own."""
        return self.place.arguments(*OPTIONS, "--cache", str(folder / "cache"), out=folder / "run")

    def span(self, stage: str) -> float:
        """Return the seconds from the beginning of a stage to that of the next."""
        later = [at for at in self.began.values() if at > self.began[stage]]
        return min(later, default=self.seconds) - self.began[stage]


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with fork_server() as running:
        yield running


@pytest.fixture(scope="module")
def straight(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    place = write_classification(tmp_path_factory.mktemp("straight"))
    folder = place.folder / "straight"
    folder.mkdir()
    nothing = Straight(place, server, "", 0.0, {})
    assert server.run(nothing.arguments(folder), folder / "stderr") == 0, (folder / "stderr").read_text()
    sha256 = adapter_hash(RunDirectory(folder / "run").adapter)
    shutil.rmtree(folder / "run")
    started, began = time.monotonic(), {}
    child = server.start(nothing.arguments(folder), folder / "stderr")
    for stage, words in WORDS.items():
        assert wait_for(child, *words), child.said()
        began[stage] = time.monotonic() - started
    assert child.wait() == 0
    seconds = time.monotonic() - started
    assert adapter_hash(RunDirectory(folder / "run").adapter) == sha256
    return Straight(place, server, sha256, seconds, began)


def wrong_after(straight: Straight, folder: Path) -> str:
    """Run again, and say what is not as if nothing had happened."""
    run = RunDirectory(folder / "run")
    if broken := broken_promises(run):
        return f"a finished stage is not what it was: {broken}"
    if straight.server.run(straight.arguments(folder), folder / "again") != 0:
        return (folder / "again").read_text()
    if [stage for stage in STAGES if not run.marker(stage)]:
        return "not every stage is finished"
    if left := left_over(run.folder) + [path.name for path in run.folder.glob("checkpoints*")]:
        return f"left over: {left}"
    return "" if adapter_hash(run.adapter) == straight.sha256 else "the adapter is another one"


def stage_of(said: str) -> str:
    """Name the stage that began last."""
    begun = [stage for stage, words in WORDS.items() if stage != "eval" and any(word in said for word in words)]
    return begun[-1] if begun else "start"


def test_killed_at_any_instant_the_adapter_is_the_same(straight: Straight, figures: Figures, tmp_path: Path) -> None:
    count = figures.amount(8, 200)
    draw, failures = random.Random(0), []
    where: Counter[str] = Counter()
    resumed = trial = 0
    while where.total() < count:
        trial += 1
        folder = tmp_path / str(trial)
        folder.mkdir()
        child = straight.server.start(straight.arguments(folder), folder / "stderr")
        time.sleep(draw.uniform(0, straight.seconds))
        child.send(signal.SIGKILL)
        if child.wait() != -signal.SIGKILL:
            shutil.rmtree(folder)
            continue  # it had ended before
        where[stage_of(child.said())] += 1
        if wrong := wrong_after(straight, folder):
            failures.append(f"{trial}, {stage_of(child.said())}: {wrong}")
        resumed += "going on after step" in (folder / "again").read_text()
        shutil.rmtree(folder)
    places = ", ".join(f"{stage} {where[stage]}" for stage in ("start", *WORDS) if where[stage])
    note = f"in {places}; {resumed} went on from a checkpoint"
    figures.report(
        "Kills", "SIGKILL at a random instant, run again: the same adapter", count, "kills", len(failures), note
    )
    assert failures == []


def interrupted(straight: Straight, stage: str, folder: Path, draw: random.Random) -> tuple[Forked, int, float, int]:
    """Send SIGTERM somewhere in a stage: the command, its status, seconds to its end, steps that were done before."""
    for attempt in range(5):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        child = straight.server.start(straight.arguments(folder), folder / "stderr")
        assert wait_for(child, *WORDS[stage]), child.said()
        time.sleep(draw.uniform(0, 0.8 / (attempt + 1)) * straight.span(stage))
        lines = [
            len(file.read_text().splitlines()) for file in (folder / "run").glob(".staging-*-training/metrics.jsonl")
        ]
        child.send(signal.SIGTERM)
        asked = time.monotonic()
        status = child.wait()
        if status != 0:  # else it was quicker than the signal
            return child, status, time.monotonic() - asked, max(lines, default=0)
    pytest.fail(f"{stage} was always over before the signal")


def test_asked_to_end_in_any_stage_it_saves_and_ends(straight: Straight, figures: Figures, tmp_path: Path) -> None:
    count = figures.amount(1, 10)
    draw, failures, slowest = random.Random(1), [], 0.0
    for stage in WORDS:
        for trial in range(count):
            folder = tmp_path / f"{stage}{trial}"
            child, status, seconds, done = interrupted(straight, stage, folder, draw)
            slowest = max(slowest, seconds)
            saved = [read_progress(one).step for one in checkpoints(folder / "run" / "checkpoints")]
            wrong = [
                f"status {status}" if status != 128 + signal.SIGTERM else "",
                f"{seconds:.1f} s" if seconds > LONGEST_END else "",
                f"{done} steps done, and {saved} saved" if max(saved, default=0) < done else "",
                "no word on how to go on" if "goes on from there" not in child.said() else "",
                "a traceback" if "Traceback" in child.said() else "",
            ]
            wrong.append(wrong_after(straight, folder))
            failures += [f"{stage} {trial}: {one}" for one in wrong if one]
            shutil.rmtree(folder)
    claim = "SIGTERM in each of 7 stages: saved, ended within 10 s, no finished step lost; run again: the same adapter"
    figures.report("Signals", claim, 7 * count, "signals", len(failures), f"the slowest took {slowest:.1f} s")
    assert failures == []
