"""Keeps of each of very many texts what is needed to tell how similar two of them are.

Kept are the 128 smallest hashes of a text's shingles. Below the smaller of the largest hashes of two texts, both are
known in full, and the share of common shingles there is an estimate of the share at large (its standard error is 0.03
for a share of 0.85). Texts of at most 128 shingles are compared exactly.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evaluation.shingles import Hashes, Integers, shingle_sets

SKETCHED = 128
"""Shingles kept of a text."""
BANDS, MINIMA_A_BAND = 10, 4
"""Texts are compared where the four minima of a band are equal: for a similarity of 0.85, 998 pairs of 1,000."""
TEMPLATE_SHARE = 0.2
"""Shingles in a larger share of the texts belong to a template; that two texts share them says nothing."""
_ALWAYS_ALLOWED = 2
_COUNTED_BITS = 24

_FACTORS = np.random.default_rng(0).integers(1 << 63, size=BANDS * MINIMA_A_BAND, dtype=np.uint64) * 2 + 1

Sketch = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class _Batch:
    """Texts that were added together."""

    shingles: Sketch
    """Those of each text in ascending order, one text after another."""
    stops: Integers
    """Where each text ends."""


class Sketches:
    """Texts, numbered in the order in which they were added; 4 bytes a shingle are kept, 512 at most."""

    def __init__(self) -> None:
        """Begin without texts."""
        self._batches: list[_Batch] = []
        self._first: list[int] = [0]
        self._template = np.zeros(1 << _COUNTED_BITS, bool)

    def add(self, texts: Sequence[str]) -> None:
        """Add texts."""
        kept = [(one[:SKETCHED] >> np.uint64(32)).astype(np.uint32) for one in shingle_sets(texts)]
        stops = np.cumsum([len(one) for one in kept], dtype=np.int64)
        self._batches.append(_Batch(np.concatenate([np.empty(0, np.uint32), *kept]), stops))
        self._first.append(self._first[-1] + len(texts))

    def leave_template_out(self) -> None:
        """From now on, do not count what two texts share where too many texts have it."""
        many = np.zeros(1 << _COUNTED_BITS, np.uint32)
        for batch in self._batches:
            places, times = np.unique(_counted(batch.shingles), return_counts=True)
            many[places] += times.astype(np.uint32)
        self._template = many > max(_ALWAYS_ALLOWED, TEMPLATE_SHARE * self._first[-1])

    def bands(self) -> tuple[Integers, Hashes]:
        """Return the texts that can be similar to any, and a key for each of their bands (texts × bands)."""
        parts = [self._bands_of(batch) for batch in self._batches]
        texts = [rows + first for first, (rows, _) in zip(self._first, parts, strict=False)]
        empty = np.empty((0, BANDS), np.uint64)
        return np.concatenate([np.empty(0, np.int64), *texts]), np.concatenate([empty, *(keys for _, keys in parts)])

    def similarity(self, one: int, other: int) -> float:
        """Return the share of common shingles (Jaccard), or an estimate for texts with many."""
        mine, theirs = self._of(one), self._of(other)
        for full in (mine, theirs):
            if len(full) == SKETCHED:
                mine, theirs = mine[mine <= full[-1]], theirs[theirs <= full[-1]]
        shared = np.intersect1d(mine, theirs, assume_unique=True)
        usual = int(np.count_nonzero(self._template[_counted(shared)]))
        return (len(shared) - usual) / max(1, len(mine) + len(theirs) - len(shared) - usual)

    def _of(self, text: int) -> Sketch:
        number = bisect.bisect_right(self._first, text) - 1
        batch, place = self._batches[number], text - self._first[number]
        return batch.shingles[batch.stops[place - 1] if place else 0 : batch.stops[place]]

    def _bands_of(self, batch: _Batch) -> tuple[Integers, Hashes]:
        owner = np.repeat(np.arange(len(batch.stops)), np.diff(batch.stops, prepend=0))
        telling = ~self._template[_counted(batch.shingles)]
        shingles, owner = batch.shingles[telling].astype(np.uint64), owner[telling]
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        keys = np.zeros((len(starts), BANDS), np.uint64)
        for number, factor in enumerate(_FACTORS if len(starts) else ()):
            # The upper half of a product with a random odd factor orders the shingles at random.
            least = np.minimum.reduceat((shingles * factor) >> np.uint64(32), starts)
            band = number // MINIMA_A_BAND
            keys[:, band] = (keys[:, band] + least) * _FACTORS[0] ^ (keys[:, band] >> np.uint64(29))
        return owner[starts], keys


def _counted(shingles: Sketch) -> npt.NDArray[np.uint32]:
    return shingles >> np.uint32(32 - _COUNTED_BITS)
