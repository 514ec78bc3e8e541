"""What was measured: a claim, how many cases it was tried on, and how many of them failed.

`pytest tests/laws/data --figures` and `pytest tests/faults --figures` try them in full, and write a table each into
docs/guarantees.md. The second takes long and can be made in parts: a line stays until its claim is measured again.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

GUARANTEES = Path(__file__).parents[1] / "docs" / "guarantees.md"
BOARDS = ("tests/laws/data", "tests/faults", "tests/hostile")
"""Folders whose tests fill a table of their own."""
DATED = BOARDS[1:]
"""Those whose lines are measured in parts, so that each has its date."""
END = "<!-- end of figures -->"
HEADS = ("| about |", "| --- |")


@dataclass(frozen=True)
class Figure:
    """One claim with its count."""

    part: str
    """What it is about: Mask, Packing, Rows, …"""
    claim: str
    cases: int
    unit: str
    """What was counted: conversations, tokens, kinds of bad row, …"""
    failures: int
    note: str = ""
    board: str = BOARDS[0]

    def line(self) -> str:
        """Return it as a line of a Markdown table."""
        cells = f"| {self.part} | {self.claim} | {self.cases:,} {self.unit} | {self.failures:,} | {self.note or '–'} |"
        return cells if self.board not in DATED else f"{cells} {datetime.now(UTC):%Y-%m-%d} |"


@dataclass
class Figures:
    """The figures of a session, those of one test with the board that they belong to."""

    full: bool
    lines: list[Figure] = field(default_factory=list)
    board: str = BOARDS[0]

    def amount(self, small: int, large: int) -> int:
        """Return how many cases to try: few in the daily run, many with --figures."""
        return large if self.full else small

    def report(self, part: str, claim: str, cases: int, unit: str, failures: int, note: str = "") -> None:
        """Keep a figure; call it before asserting that there are no failures."""
        self.lines.append(Figure(part, claim, cases, unit, failures, note, self.board))

    def boards(self) -> list[str]:
        """Name the boards that figures were reported for."""
        return [board for board in BOARDS if any(line.board == board for line in self.lines)]

    def table(self, board: str, kept: list[str] | None = None) -> list[str]:
        """Return the figures of a board as a Markdown table, by part, with lines of other claims from before."""
        lines = {_claim(figure.line()): figure.line() for figure in self.lines if figure.board == board}
        older = {_claim(line): line for line in kept or []}
        dated = board in DATED
        head = "| about | claim | tried on | failures | note |" + (" measured |" if dated else "")
        rule = "| --- | --- | ---: | ---: | --- |" + (" --- |" if dated else "")
        return [head, rule, *(line for _, line in sorted((older | lines).items()))]

    def write(self, board: str) -> None:
        """Put the table between its marks in docs/guarantees.md."""
        text = GUARANTEES.read_text(encoding="utf-8")
        begin = f"<!-- figures: written by `pytest {board} --figures` -->"
        before, rest = text.split(begin)
        within, after = rest.split(END, 1)
        kept = (
            [line for line in within.splitlines() if line.startswith("| ") and not line.startswith(HEADS)]
            if board in DATED
            else []
        )
        packages = ("torch", "transformers", "tokenizers", "peft", "trl")
        versions = ", ".join(f"{name} {version(name)}" for name in packages)
        made = f"Python {platform.python_version()}, {versions}."
        table = "\n".join(self.table(board, kept))
        GUARANTEES.write_text(f"{before}{begin}\n\n{table}\n\n{made}\n\n{END}{after}", encoding="utf-8")


def _claim(line: str) -> tuple[str, str]:
    part, claim, *_ = line.removeprefix("| ").split(" | ")
    return part, claim
