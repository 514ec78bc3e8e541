"""JSON that stands as text inside a row: accepted only where the row itself could have held it."""

from __future__ import annotations

import json
import math

from pydantic import JsonValue

from finetune.row_check import is_unicode

DEEPEST = 40
"""Nesting of lists and objects."""


def parse_json_text(text: str) -> JsonValue:
    """Parse JSON whose values can be hashed and rendered.

    Raises:
        ValueError: it is not JSON, repeats a key, is nested deeper than DEEPEST, or holds NaN, Infinity or half of a
            surrogate pair.
    """
    try:
        value: JsonValue = json.loads(text, object_pairs_hook=_unrepeated)
    except RecursionError as error:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from error
    pending: list[tuple[JsonValue, int]] = [(value, 0)]
    while pending:
        part, depth = pending.pop()
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        if isinstance(part, float) and not math.isfinite(part):
            raise ValueError("a number that is not finite")
        if isinstance(part, str) and not is_unicode(part):
            raise ValueError("half of a surrogate pair")
        if isinstance(part, dict):
            pending.extend((inner, depth + 1) for item in part.items() for inner in item)
        elif isinstance(part, list):
            pending.extend((inner, depth + 1) for inner in part)
    return value


def json_text(value: object) -> str:
    """Write JSON without spaces, characters as they are and keys in their order, so that equal values look alike."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _unrepeated(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values
