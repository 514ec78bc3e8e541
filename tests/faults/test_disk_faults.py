"""A disk that is full, or broken, or a kill, at every call that writes, syncs, creates or renames in a run.

Whatever was finished stays finished, the error is one screen, and the same command again comes to the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_disk import Ending, Fault, FaultyDisk, Kind, faulty_disk, missing_compiler
from figures import Figures
from tiny_runs import Workplace, broken_promises, finetune_process, left_over, write_classification

from evaluation.files import sha256_of_file
from finetune.run_directory import OUTPUTS, STAGES, RunDirectory, Stage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler())),
]

KINDS: tuple[Kind, ...] = ("full", "broken", "kill")
IN_CI = 3
"""Calls of each stage that the daily run tries; --figures tries all of them."""
SCREEN = 24
TIMED = {"audit.json", "summary.json", "metrics.jsonl", "merge.json", "report.html", "report.md", "report.json"}
"""Files that hold how long something took."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace with one undisturbed run; paths are short, since every call looks at one."""
    workplace = write_classification(tmp_path_factory.mktemp("disk"), rows=40)
    outcome = finetune_process(*workplace.arguments(out=workplace.folder / "there" / "run"))
    assert outcome.status == 0, outcome.stderr
    return workplace


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDisk]:
    with faulty_disk(tmp_path_factory.mktemp("shim")) as running:
        yield running


def content(run: RunDirectory, stage: Stage) -> dict[str, str]:
    """Hash what a stage made, without what holds a time."""
    paths = [path for name in OUTPUTS[stage] for path in [run.folder / name, *(run.folder / name).rglob("*")]]
    held = [path for path in paths if path.is_file() and path.name not in TIMED and "evaluation" not in path.parts]
    return {str(path.relative_to(run.folder)): sha256_of_file(path) for path in held}


def before(place: Workplace, stage: Stage, folder: Path) -> RunDirectory:
    """Copy the run as it is before a stage, with a cache of its own, which the first stage begins empty."""
    there = RunDirectory(place.folder / "there" / "run")
    shutil.rmtree(folder, ignore_errors=True)
    run = RunDirectory(folder / "run")
    shutil.copytree(there.folder, run.folder)
    for unfinished in STAGES[STAGES.index(stage) :]:
        run.forget(unfinished)
    return run


def arguments(place: Workplace, stage: Stage, folder: Path) -> list[str]:
    command = {"prepare": "prepare", "train": "train", "merge": "merge", "evaluate": "evaluate", "report": "report"}
    return [command[stage], str(place.recipe), "--out", str(folder / "run"), "--cache", str(folder / "cache")]


def broken_by(ending: Ending, kind: Kind) -> list[str]:
    """Say what is wrong with how a command ended whose disk had a fault."""
    if kind == "kill":
        return [] if ending.status == -9 else [f"status {ending.status}"]
    words = {"full": "the disk is full", "broken": "the disk fails"}[kind]
    if ending.status == 0:
        return []  # what failed was nothing that is needed
    found = [] if ending.status == 6 and words in ending.said else [f"status {ending.status}: {ending.said[-300:]}"]
    if "Traceback" in ending.said or len(ending.said.splitlines()) > SCREEN + 40:  # the audit's table comes before
        found.append(f"more than a screen: {ending.said[-300:]}")
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_every_call_to_the_disk_may_fail(
    place: Workplace, disk: FaultyDisk, tmp_path: Path, figures: Figures, stage: Stage
) -> None:
    folder = tmp_path / "d"
    before(place, stage, folder)
    counted = disk.run(arguments(place, stage, folder), Fault(folder))
    assert counted.status == 0, counted.said
    expected = content(RunDirectory(place.folder / "there" / "run"), stage)
    assert content(RunDirectory(folder / "run"), stage) == expected
    every = max(1, counted.calls // IN_CI) if not figures.full else 1
    tried, failures, told = 0, [], 0
    for at in range(1, counted.calls + 1, every):
        kind = KINDS[(at + STAGES.index(stage)) % len(KINDS)] if figures.full else KINDS[tried % len(KINDS)]
        tried += 1
        run = before(place, stage, folder)
        ending = disk.run(arguments(place, stage, folder), Fault(folder, at, kind))
        found = broken_by(ending, kind)
        told += ending.status == 6
        found += broken_promises(run)
        earlier = [one for one in STAGES[: STAGES.index(stage)] if not run.marker(one)]
        found += [f"{one} is no longer finished" for one in earlier]
        again = disk.run(arguments(place, stage, folder), Fault(folder))
        if again.status != 0 or content(run, stage) != expected or broken_promises(run) or left_over(folder):
            found.append(f"again: {again.status} {again.said[-300:]} {left_over(folder)}")
        failures += [f"{kind} at call {at} ({ending.failed}): {what}" for what in found]
    claim = f"disk full, I/O error or kill at a call that writes, syncs, creates or renames, in {stage}: nothing lost"
    note = f"of {counted.calls} such calls; {told} told as an error of the disk; the same bytes when run again"
    figures.report("Disk", claim, tried, "calls", len(failures), note)
    assert failures == []
