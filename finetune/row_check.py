"""What a row is that can be used, whatever file it stood in: an object of values that can be hashed and rendered."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pydantic import JsonValue

DEEPEST = 50
"""Nesting of lists and objects in one row."""
LONGEST_ROW = 10**7
"""Bytes of a line, characters of a row: more is set aside as `too_large` and never held as a whole."""


@dataclass(frozen=True)
class Record:
    """A row that could be read, and the line it begins on."""

    line: int
    values: dict[str, JsonValue]


@dataclass(frozen=True)
class Unreadable:
    """A row that could not be read: a short code, and what exactly, without the row's text."""

    line: int
    reason: str
    detail: str


@dataclass(frozen=True)
class RepeatedKey:
    """Stands for an object in which a key occurs twice, until the row that holds it is set aside."""

    key: str


def check_row(line: int, row: object) -> Record | Unreadable:
    """Accept an object whose values can be hashed and rendered: finite, encodable, of bounded size and depth."""
    if isinstance(row, RepeatedKey):
        return Unreadable(line, "repeated_key", f"the key {row.key!r} stands twice")
    if not isinstance(row, dict):
        what = f"{type(row).__name__} instead of an object of columns"
        whole = "; a file that is one list is the .json form" if isinstance(row, list) else ""
        return Unreadable(line, "not_an_object", what + whole)
    characters = 0
    pending: list[tuple[object, int]] = [(row, 0)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, str):
            characters += len(value)
            if value.isascii():
                continue
        problem = _problem_of(value, depth)
        if problem is not None:
            return Unreadable(line, *problem)
        if isinstance(value, dict):
            pending.extend((part, depth + 1) for item in value.items() for part in item)
        elif isinstance(value, list):
            pending.extend((part, depth + 1) for part in value)
    if characters > LONGEST_ROW:
        return Unreadable(line, "too_large", f"{characters:,} characters, at most {LONGEST_ROW:,} are read")
    return Record(line, row)


def is_unicode(text: str) -> bool:
    """Tell whether a text can be written as UTF-8: it holds no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _problem_of(value: object, depth: int) -> tuple[str, str] | None:
    if depth > DEEPEST:
        return "too_deep", f"nested deeper than {DEEPEST} levels"
    if isinstance(value, RepeatedKey):
        return "repeated_key", f"the key {value.key!r} stands twice"
    if isinstance(value, float) and not math.isfinite(value):
        return "not_finite", "NaN or Infinity, which JSON does not have"
    if isinstance(value, bytes):
        return "binary_value", "binary data in a column; leave it out of the file"
    if isinstance(value, str) and not is_unicode(value):
        return "not_unicode", "half of a surrogate pair, or bytes that are not UTF-8"
    return None
