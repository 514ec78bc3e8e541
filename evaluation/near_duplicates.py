"""Counts the rows that repeat an earlier one, word for word or nearly, among very many rows."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluation.overlap import normalized_for_overlap
from evaluation.shingles import Hashes
from evaluation.sketches import BANDS, Sketches

SIMILARITY = 0.8
"""Share of common shingles (Jaccard) from which a row nearly repeats an earlier one."""
LISTED = 20
"""Repeats that are named."""
_BATCH_ROWS = 512
_BATCH_CHARACTERS = 400_000


@dataclass(frozen=True)
class Repeat:
    """A row that repeats an earlier one."""

    name: str
    earlier: str
    kind: Literal["exact", "near"]
    """Equal without case, punctuation and spaces, or nearly equal."""


@dataclass(frozen=True)
class Repetitions:
    """How many of the rows repeat an earlier one."""

    rows: int
    exact: int
    near: int
    listed: tuple[Repeat, ...]
    """The first of them, in the order of the rows."""


class DuplicateFinder:
    """Takes rows as they go by, and tells at the end which of them repeat an earlier one.

    Rows are compared where MinHash finds them alike, and by their shared shingles then (see `evaluation.sketches`).
    A million rows need some 0.1 GB, and on the disk 0.1 GB if they are short and 0.5 GB if they are long.
    """

    def __init__(self) -> None:
        """Begin without rows."""
        self._names = bytearray()
        self._name_stops = array("q", [0])
        self._keys: list[Hashes] = []
        self._sketches = Sketches()
        self._waiting: list[str] = []
        self._characters = 0

    def see(self, name: str, text: str) -> None:
        """Take a row: what it is called where it is listed, and all that it says."""
        self._names += name.encode("utf-8", "surrogatepass")
        self._name_stops.append(len(self._names))
        self._waiting.append(text)
        self._characters += len(text)
        if len(self._waiting) >= _BATCH_ROWS or self._characters >= _BATCH_CHARACTERS:
            self._sketch()

    def found(self, listed: int = LISTED) -> Repetitions:
        """Count the rows so far that repeat an earlier one, and list this many of them, the first ones."""
        self._sketch()
        exact = _equal_rows(np.concatenate([np.empty(0, np.uint64), *self._keys]))
        near = self._near_rows(exact)
        earlier = exact | near
        repeats = tuple(
            Repeat(self._name(row), self._name(earlier[row]), "exact" if row in exact else "near")
            for row in sorted(earlier)[:listed]
        )
        return Repetitions(rows=len(self._name_stops) - 1, exact=len(exact), near=len(near), listed=repeats)

    def _name(self, row: int) -> str:
        name = self._names[self._name_stops[row] : self._name_stops[row + 1]]
        return name.decode("utf-8", "surrogatepass")

    def _sketch(self) -> None:
        if self._waiting:
            self._sketches.add(self._waiting)
            self._keys.append(np.array([_key(text) for text in self._waiting], np.uint64))
        self._waiting, self._characters = [], 0

    def _near_rows(self, exact: dict[int, int]) -> dict[int, int]:
        """Return the other rows that are nearly equal to an earlier one, with that one."""
        self._sketches.leave_template_out()
        known = np.fromiter(exact, np.int64)
        found: dict[int, int] = {}
        for band in range(BANDS):
            rows, keys = self._sketches.band(band)
            fresh = ~np.isin(rows, known)
            rows, keys = rows[fresh], keys[fresh]
            pairs = ((int(rows[later]), int(rows[earlier])) for later, earlier in _neighbours(keys))
            unknown = (pair for pair in pairs if pair[0] not in found)
            for row, before, similarity in self._sketches.compared(unknown):
                if similarity >= SIMILARITY:
                    found[row] = before
        return found


def _key(text: str) -> int:
    spelled = normalized_for_overlap(text) or text
    return int.from_bytes(hashlib.blake2b(spelled.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _equal_rows(keys: Hashes) -> dict[int, int]:
    """Return each row whose key stood before, with the first row that has it."""
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    earlier = first[which]
    later = np.flatnonzero(earlier != np.arange(len(keys)))
    return dict(zip(later.tolist(), earlier[later].tolist(), strict=True))


def _neighbours(keys: Hashes) -> Iterator[tuple[int, int]]:
    """Yield rows of equal keys, the later one first: each with the two before it and with the first of all.

    Not with all before it, as a set phrase in a thousand rows would be a million pairs.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    place = np.arange(len(order))
    first = np.maximum.accumulate(np.where(np.diff(ordered, prepend=ordered[:1] + np.uint64(1)) != 0, place, 0))
    for before in (place - 1, place - 2, first):
        there = (before >= first) & (before < place)
        yield from zip(order[there].tolist(), order[before[there]].tolist(), strict=True)
