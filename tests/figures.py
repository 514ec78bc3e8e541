"""What the laws on data measured: a claim, how many cases it was tried on, and how many of them failed.

`pytest tests/laws/data --figures` tries them in full and writes the table into docs/guarantees.md.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

GUARANTEES = Path(__file__).parents[1] / "docs" / "guarantees.md"
BEGIN = "<!-- figures: written by `pytest tests/laws/data --figures` -->"
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


@dataclass
class Figures:
    """The figures of a session."""

    full: bool
    lines: list[Figure] = field(default_factory=list)

    def amount(self, small: int, large: int) -> int:
        """Return how many cases to try: few in the daily run, many with --figures."""
        return large if self.full else small

    def report(self, part: str, claim: str, cases: int, unit: str, failures: int, note: str = "") -> None:
        """Keep a figure; call it before asserting that there are no failures."""
        self.lines.append(Figure(part, claim, cases, unit, failures, note))

    def table(self) -> list[str]:
        """Return the figures as a Markdown table, by part."""
        head = ["| about | claim | tried on | failures | note |", "| --- | --- | ---: | ---: | --- |"]
        ordered = sorted(self.lines, key=lambda figure: (figure.part, figure.claim))
        return head + [
            f"| {f.part} | {f.claim} | {f.cases:,} {f.unit} | {f.failures:,} | {f.note or '–'} |" for f in ordered
        ]

    def write(self) -> None:
        """Put the table between its marks in docs/guarantees.md."""
        text = GUARANTEES.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        _, after = rest.split(END)
        packages = ("torch", "transformers", "tokenizers", "peft", "trl")
        versions = ", ".join(f"{name} {version(name)}" for name in packages)
        made = f"Python {platform.python_version()}, {versions}."
        GUARANTEES.write_text(
            before + BEGIN + "\n\n" + "\n".join(self.table()) + f"\n\n{made}\n\n" + END + after, encoding="utf-8"
        )
