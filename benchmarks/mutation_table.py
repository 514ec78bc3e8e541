"""The table of docs/guarantees.md that says how many breaks of each guard its tests notice."""

from __future__ import annotations

import platform
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from scipy.stats import binomtest

from benchmarks.mutants import ROOT

GUARANTEES = ROOT / "docs" / "guarantees.md"
BEGIN = "<!-- mutants: written by `python -m benchmarks.mutate_guards --write` -->"
END = "<!-- end of mutants -->"
HEAD = "| guard | breaks | tried | noticed | ran out of time | survived | measured |"
RULE = "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
TOTAL = "all"


@dataclass(frozen=True)
class Score:
    """What became of a guard's breaks; those that were tried are a random sample where they are fewer."""

    module: str
    breaks: int
    noticed: int
    out_of_time: int
    survived: int
    measured: str = f"{datetime.now(UTC):%Y-%m-%d}"

    @property
    def tried(self) -> int:
        """Return how many were tried."""
        return self.noticed + self.out_of_time + self.survived

    def told(self) -> str:
        """Say it in a line, with Wilson's interval where only a sample was tried."""
        share = f"{self.noticed / max(self.tried, 1):.1%}"
        if self.tried < self.breaks:
            low, high = binomtest(self.noticed, self.tried).proportion_ci(method="wilson")
            share += f", {low:.1%} to {high:.1%}; of {self.breaks} breaks"
        late = f", ran out of time: {self.out_of_time}" if self.out_of_time else ""
        return f"{self.module}: {self.noticed} of {self.tried} noticed ({share}){late}"

    def line(self) -> str:
        """Return it as a line of the table."""
        counts = (self.breaks, self.tried, self.noticed, self.out_of_time, self.survived)
        return " | ".join((f"| {self.module}", *map(str, counts), f"{self.measured} |"))


def parse_line(line: str) -> Score:
    """Read a line of the table."""
    module, breaks, _, *counts, measured = (cell.strip() for cell in line.strip("| \n").split(" | "))
    noticed, out_of_time, survived = map(int, counts)
    return Score(module, int(breaks), noticed, out_of_time, survived, measured)


def summed(scores: list[Score], name: str = TOTAL) -> Score:
    """Add scores up; what was measured last says when."""
    counts = (sum(column) for column in zip(*(astuple(score)[1:5] for score in scores), strict=True))
    return Score(name, *counts, max(score.measured for score in scores))


def write_scores(new: list[Score], file: Path = GUARANTEES) -> None:
    """Put scores into the table; the line of a guard that was not tried now stays."""
    before, rest = file.read_text(encoding="utf-8").split(BEGIN)
    within, after = rest.split(END)
    older = [parse_line(line) for line in [line for line in within.splitlines() if line.startswith("| ")][2:]]
    scores = {score.module: score for score in (*older, *new) if score.module != TOTAL}
    ordered = [score for _, score in sorted(scores.items())]
    table = "\n".join([HEAD, RULE, *(score.line() for score in (*ordered, summed(ordered)))])
    whole = [score for score in ordered if score.tried == score.breaks]
    parts = [score for score in ordered if score.tried < score.breaks]
    named = (("guards of which every break was tried", whole), ("guards of which a random sample was tried", parts))
    told = "\n".join(f"- {summed(some, name).told()}" for name, some in named if some)
    file.write_text(f"{before}{BEGIN}\n\n{table}\n\n{told}\n\n{_versions()}\n\n{END}{after}", encoding="utf-8")


def _versions() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("pytest", "torch", "transformers", "peft"))
    return f"Python {platform.python_version()}, {packages}."
