"""What is seen of the training rows while they go by: who speaks, in which languages, which labels, what repeats."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from evaluation.near_duplicates import DuplicateFinder

SAMPLED_ROWS = 2000
"""Rows whose language is guessed."""
SAMPLED_CHARACTERS = 1000
"""Of the text of each."""
LISTED_REPETITIONS = 20


@dataclass
class Observed:
    """Counts over the training rows; a row that stands more than once is counted as often as it stands."""

    classification: bool
    every: int
    """Each how-manieth row is looked at for its language."""
    rows: int = 0
    turns: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    texts: list[str] = field(default_factory=list)
    repetitions: Counter[str] = field(default_factory=Counter)
    listed: list[tuple[str, str]] = field(default_factory=list)
    finder: DuplicateFinder = field(default_factory=DuplicateFinder)
