"""Ctrl-C and SIGTERM in commands other than `run`: their own exit code, one line, no traceback, nothing broken."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from figures import Figures
from fork_server import ForkServer, fork_server, wait_for
from tiny_runs import Workplace, broken_promises, finetune_command, left_over, write_classification

from finetune.run_directory import RunDirectory

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Ended:
    """A command, what it says when it is in the middle, and what it says of how to go on."""

    name: str
    arguments: tuple[str, ...]
    out: Path
    words: str
    told: str


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with fork_server() as running:
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    workplace = write_classification(tmp_path_factory.mktemp("ended"))
    ran = workplace.run()
    assert ran.status == 0, ran.stderr
    return workplace


def commands(place: Workplace, folder: Path) -> Iterator[Ended]:
    """List commands that take long, each with a folder of its own to write in."""
    run, cache, again = place.folder / "run", ("--cache", str(place.cache)), folder / "again"
    for words in ("prepare: not", "loading the base", "merge: not", "evaluate: not"):
        goes_on = f"finetune run {again / 'recipe.yaml'}"
        yield Ended("rerun", ("rerun", str(run), "--out", str(again), *cache), again, words, goes_on)
    one = folder / "one"
    scored = tuple(place.arguments(out=one, command="evaluate"))
    yield Ended("evaluate", scored, one, "evaluate: not", "the same command goes on")
    model = ("export", str(run), "--out", str(folder / "x.gguf"), "--no-llama-cpp")
    yield Ended("export", model, folder / "x.gguf", "", "nothing is left half-written")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_each_ends_with_its_own_code_and_a_line(
    number: int, place: Workplace, server: ForkServer, figures: Figures, tmp_path: Path
) -> None:
    wrong, cases = [], 0
    for ended in commands(place, tmp_path):
        child = server.start(list(ended.arguments), tmp_path / "stderr")
        if ended.words:
            assert wait_for(child, ended.words), child.said()
        while not ended.words and not left_over(tmp_path):
            assert not child.ended(), child.said()
        child.send(number)
        status, said = child.wait(), child.said()
        found = [
            f"status {status}" if status != 128 + number else "",
            "a traceback" if "Traceback" in said else "",
            "not one line" if said.count("interrupted") != 1 or "Aborted" in said else "",
            f"does not say {ended.told!r}" if "".join(ended.told.split()) not in "".join(said.split()) else "",
            f"left {left_over(tmp_path)}" if ended.name == "export" and left_over(tmp_path) else "",
            *(broken_promises(RunDirectory(ended.out)) if ended.out.is_dir() else ()),
        ]
        wrong += [f"{ended.name}, {ended.words}: {one}; {said[-300:]}" for one in found if one]
        if ended.name == "rerun" and (ended.out / "recipe.yaml").exists():
            run = ("run", str(ended.out / "recipe.yaml"), "--out", str(ended.out), "--cache", str(place.cache))
            if finetune_command(*run).status != 0:
                wrong.append(f"{ended.name}, {ended.words}: does not go on")
        shutil.rmtree(ended.out, ignore_errors=True)
        cases += 1
    named = signal.Signals(number).name
    claim = f"{named} in rerun, evaluate and export: exit code {128 + number}, one line, nothing broken"
    figures.report("Signals", claim, cases, "commands", len(wrong))
    assert not wrong, "\n".join(wrong)
