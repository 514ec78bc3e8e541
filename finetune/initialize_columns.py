"""What the columns of a user's file are like: kinds of value, how many differ, how long they are."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from finetune.rows import Row

Kind = Literal["text", "integer", "number", "boolean", "list", "object"]

MOSTLY = 0.9
"""Share of the values that decides what a column is; the others are set aside row by row."""
LONGEST_LABEL = 60
"""Characters of a class's name."""
MOST_LABELS = 200
MOST_NUMERIC_LABELS = 20
LONGEST_NAMED_LABEL = 120
"""Characters of a class in a column that is called so."""
LEAST_REPEATS = 1.5
REPEATS = 3
"""How often a class is seen, on average, for its column to be taken for one of classes."""


@dataclass(frozen=True)
class ColumnFacts:
    """One column of the rows that were looked at."""

    name: str
    rows: int
    """Rows that were looked at, with and without the column."""
    kinds: dict[Kind, int]
    """How many values are of each kind, without nulls and empty texts."""
    distinct: int
    """Different values among those that are no lists and no objects."""
    longest: int
    """Characters of the longest value."""
    typical: float
    """Median of the characters."""
    numeric: bool
    """Whether every value is a number, or a text of digits."""
    classes: frozenset[str]
    """The values themselves where they are few."""
    keys: frozenset[str]
    """Keys that every object in the lists has; empty where the values are no lists of objects."""

    @property
    def filled(self) -> int:
        """Count the rows with a value."""
        return sum(self.kinds.values())

    def is_mostly(self, *kinds: Kind) -> bool:
        """Say whether nearly all of its values are of these kinds."""
        fitting = sum(self.kinds.get(kind, 0) for kind in kinds)
        return fitting > 0 and fitting >= MOSTLY * self.filled

    @property
    def is_class(self) -> bool:
        """Say whether its values are few, short and repeated, as the names of classes are."""
        most = MOST_NUMERIC_LABELS if self.numeric else MOST_LABELS
        return (
            self.is_mostly("text", "integer")
            and 2 <= self.distinct <= most
            and self.longest <= LONGEST_LABEL
            and self.filled >= REPEATS * self.distinct
        )

    @property
    def may_be_class(self) -> bool:
        """Say whether a column that is called a label may be one: short values, some of them repeated."""
        return 0 < self.distinct <= self.filled / LEAST_REPEATS and self.longest <= LONGEST_NAMED_LABEL

    @property
    def is_prose(self) -> bool:
        """Say whether it holds texts that differ from row to row."""
        return self.is_mostly("text") and not self.numeric and not self.is_class and self.distinct > 1

    def described(self) -> str:
        """Describe the column in a few words."""
        kinds = " or ".join(kind for kind, _ in Counter(self.kinds).most_common()) or "empty"
        if not self.distinct:
            return kinds
        return f"{kinds}, {self.distinct} different, {self.typical:.0f} characters"


def look_at_columns(rows: Sequence[Row]) -> list[ColumnFacts]:
    """Describe every column, in the order in which the rows name them."""
    values: dict[str, list[JsonValue]] = {}
    for row in rows:
        for name, value in row.values.items():
            kept = values.setdefault(name, [])
            if value is not None and value != "":
                kept.append(_unfolded(value))
    return [_facts(name, found, len(rows)) for name, found in values.items()]


def _facts(name: str, values: Sequence[JsonValue], rows: int) -> ColumnFacts:
    plain = [str(value) for value in values if not isinstance(value, list | dict)]
    lengths = [len(text) for text in plain]
    different = frozenset(plain)
    return ColumnFacts(
        name=name,
        rows=rows,
        kinds=dict(Counter(_kind(value) for value in values)),
        distinct=len(different),
        longest=max(lengths, default=0),
        typical=statistics.median(lengths) if lengths else 0,
        numeric=bool(plain) and all(text.strip().lstrip("+-").replace(".", "", 1).isdigit() for text in plain),
        classes=different if len(different) <= MOST_LABELS else frozenset(),
        keys=_shared_keys([value for value in values if isinstance(value, list)]),
    )


def _unfolded(value: JsonValue) -> JsonValue:
    """Read the list that a text holds as JSON, as CSV files have them."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        listed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return listed if isinstance(listed, list) else value


def _kind(value: JsonValue) -> Kind:
    match value:
        case bool():
            return "boolean"
        case str():
            return "text"
        case int():
            return "integer"
        case float():
            return "number"
        case list():
            return "list"
    return "object"


def _shared_keys(lists: Sequence[list[JsonValue]]) -> frozenset[str]:
    """Return the keys that nearly every object in the lists has."""
    seen: Counter[str] = Counter()
    parts = [part for listed in lists for part in listed]
    for part in parts:
        if isinstance(part, dict):
            seen.update(part.keys())
    return frozenset(key for key, count in seen.items() if count >= MOSTLY * len(parts))
