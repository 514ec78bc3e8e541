"""Keeps of each of very many texts what is needed to tell how similar two of them are.

Kept are the 128 smallest hashes of a text's shingles. Below the smaller of the largest hashes of two texts, both are
known in full, and the share of common shingles there is an estimate of the share at large (its standard error is 0.03
for a share of 0.85). Texts of at most 128 shingles are compared exactly.
"""

from __future__ import annotations

import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

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


class Sketches:
    """Texts, numbered in the order in which they were added.

    What is kept of them, 4 bytes a shingle and 512 at most, lies in a file without a name that ends with this object:
    in memory are 8 bytes a text.
    """

    def __init__(self) -> None:
        """Begin without texts."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the object
        weakref.finalize(self, self._file.close)
        self._stops = array("q", [0])
        """Where each text ends in the file, after a zero."""
        self._batches = [0]
        """How many texts there were after each batch, after a zero."""
        self._template = np.zeros(1 << _COUNTED_BITS, bool)

    def add(self, texts: Sequence[str]) -> None:
        """Add texts."""
        for one in shingle_sets(texts):
            kept = (one[:SKETCHED] >> np.uint64(32)).astype(np.uint32)
            self._file.write(kept.tobytes())
            self._stops.append(self._stops[-1] + len(kept))
        self._batches.append(len(self._stops) - 1)

    def leave_template_out(self) -> None:
        """From now on, do not count what two texts share where too many texts have it."""
        many = np.zeros(1 << _COUNTED_BITS, np.uint32)
        for _, _, shingles in self._read():
            places, times = np.unique(_counted(shingles), return_counts=True)
            many[places] += times.astype(np.uint32)
        self._template = many > max(_ALWAYS_ALLOWED, TEMPLATE_SHARE * self._batches[-1])

    def band(self, number: int) -> tuple[Integers, Hashes]:
        """Return the texts that can be similar to any, and the key of each in one of the bands."""
        parts = [self._keys(number, *batch) for batch in self._read()]
        texts, keys = [text for text, _ in parts], [key for _, key in parts]
        return np.concatenate([np.empty(0, np.int64), *texts]), np.concatenate([np.empty(0, np.uint64), *keys])

    def compared(self, pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, float]]:
        """Yield each pair with the share of common shingles (Jaccard), or an estimate for texts with many."""
        kept = self._kept()
        for one, other in pairs:
            mine, theirs = (kept[self._stops[text] : self._stops[text + 1]] for text in (one, other))
            yield one, other, self._similarity(mine, theirs)

    def _similarity(self, mine: Sketch, theirs: Sketch) -> float:
        for full in (mine, theirs):
            if len(full) == SKETCHED:
                mine, theirs = mine[mine <= full[-1]], theirs[theirs <= full[-1]]
        shared = np.intersect1d(mine, theirs, assume_unique=True)
        usual = int(np.count_nonzero(self._template[_counted(shared)]))
        return (len(shared) - usual) / max(1, len(mine) + len(theirs) - len(shared) - usual)

    def _kept(self) -> Sketch:
        self._file.flush()
        return np.memmap(self._file, np.uint32, "r") if self._stops[-1] else np.empty(0, np.uint32)

    def _read(self) -> Iterator[tuple[int, Integers, Sketch]]:
        """Yield each batch: the number of its first text, the length of each text, their shingles."""
        kept, stops = self._kept(), np.array(self._stops)
        for first, last in pairwise(self._batches):
            yield first, np.diff(stops[first : last + 1]), np.array(kept[stops[first] : stops[last]])

    def _keys(self, band: int, first: int, lengths: Integers, shingles: Sketch) -> tuple[Integers, Hashes]:
        owner = np.repeat(np.arange(first, first + len(lengths)), lengths)
        telling = ~self._template[_counted(shingles)]
        telling_shingles, owner = shingles[telling].astype(np.uint64), owner[telling]
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        key = np.zeros(len(starts), np.uint64)
        for factor in _FACTORS[band * MINIMA_A_BAND : (band + 1) * MINIMA_A_BAND] if len(starts) else ():
            # The upper half of a product with a random odd factor orders the shingles at random.
            least = np.minimum.reduceat((telling_shingles * factor) >> np.uint64(32), starts)
            key = (key + least) * _FACTORS[0] ^ (key >> np.uint64(29))
        return owner[starts], key


def _counted(shingles: Sketch) -> npt.NDArray[np.uint32]:
    return shingles >> np.uint32(32 - _COUNTED_BITS)
