"""What a folder of tests measured: a claim, how many cases it was tried on, and how many of them failed.

`pytest tests/laws/data --figures` tries them in full and writes the table into docs/guarantees.md; so does
`pytest tests/hostile --figures` for the table of hostile input.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

GUARANTEES = Path(__file__).parents[1] / "docs" / "guarantees.md"
DATA, HOSTILE = "tests/laws/data", "tests/hostile"
"""Folders whose tests fill a table of their own."""
END = "<!-- end of figures -->"


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
    board: str = DATA
    """The folder whose table it belongs to."""


@dataclass
class Figures:
    """The figures of a session."""

    full: bool
    lines: list[Figure] = field(default_factory=list)
    board: str = DATA
    """The folder whose tests are reporting."""

    def of(self, board: str) -> Figures:
        """Return what the tests of another folder report to; the lines are the same list."""
        return Figures(self.full, self.lines, board)

    def amount(self, small: int, large: int) -> int:
        """Return how many cases to try: few in the daily run, many with --figures."""
        return large if self.full else small

    def report(self, part: str, claim: str, cases: int, unit: str, failures: int, note: str = "") -> None:
        """Keep a figure; call it before asserting that there are no failures."""
        self.lines.append(Figure(part, claim, cases, unit, failures, note, self.board))

    def boards(self) -> list[str]:
        """Name the folders that reported something."""
        return sorted({line.board for line in self.lines})

    def table(self, board: str) -> list[str]:
        """Return the figures of a folder as a Markdown table, by part."""
        head = ["| about | claim | tried on | failures | note |", "| --- | --- | ---: | ---: | --- |"]
        lines = [line for line in self.lines if line.board == board]
        ordered = sorted(lines, key=lambda figure: (figure.part, figure.claim))
        return head + [
            f"| {f.part} | {f.claim} | {f.cases:,} {f.unit} | {f.failures:,} | {f.note or '–'} |" for f in ordered
        ]

    def write(self, board: str) -> None:
        """Put the table of a folder between its marks in docs/guarantees.md."""
        begin = f"<!-- figures: written by `pytest {board} --figures` -->"
        before, rest = GUARANTEES.read_text(encoding="utf-8").split(begin)
        _, after = rest.split(END, 1)
        packages = ("torch", "transformers", "tokenizers", "peft", "trl")
        versions = ", ".join(f"{name} {version(name)}" for name in packages)
        made = f"{datetime.now(UTC):%d %B %Y}, Python {platform.python_version()}, {versions}."
        GUARANTEES.write_text(
            before + begin + "\n\n" + "\n".join(self.table(board)) + f"\n\n{made}\n\n" + END + after, encoding="utf-8"
        )
