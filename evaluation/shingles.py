"""Cuts texts into words, characters and the runs of them that texts are compared by.

Everything works on many texts at once, as arrays: a run is a 64-bit number that only depends on what it consists of.
Chinese, Japanese and Thai have no spaces between words, so there each character stands alone and counts as the part
of a word that it is on average.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

WORD_WEIGHT = 30
"""What a word counts when runs of words are measured; a character of a script without spaces counts less."""
SHINGLE_WEIGHT = 30
"""What a shingle of characters weighs: 5 letters, 3 kana or Hangul syllables, 2 Chinese characters."""

_BREAK, _SYMBOL, _LETTER, _HAN, _KANA, _HANGUL, _UNSPACED = range(7)
# A translated text has 1.6 to 1.7 Chinese characters, about 2.5 kana and about 5 Thai letters for an English word.
_WORD_WEIGHTS = np.array([0, 0, WORD_WEIGHT, 18, 12, WORD_WEIGHT, 6], np.int64)
_CHARACTER_WEIGHTS = np.array([0, 6, 6, 15, 10, 10, 6], np.int64)
_SCRIPTS = (
    (0x3040, 0x30FF, _KANA),
    (0x31F0, 0x31FF, _KANA),
    (0x3400, 0x4DBF, _HAN),
    (0x4E00, 0x9FFF, _HAN),
    (0xF900, 0xFAFF, _HAN),
    (0xAC00, 0xD7A3, _HANGUL),
    (0x0E00, 0x0EFF, _UNSPACED),
    (0x1000, 0x109F, _UNSPACED),
    (0x1780, 0x17FF, _UNSPACED),
)
_CLASSIFIED = 0x20000
"""Code points that are looked up; those above are Chinese characters but for a few tags."""
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)


@dataclass(frozen=True)
class Units:
    """The words or characters of several texts, one after another."""

    hashes: Hashes
    weights: Integers
    text: Integers
    """Which text each belongs to."""


@dataclass(frozen=True)
class Runs:
    """Runs of units of a given weight; each starts at another unit."""

    hashes: Hashes
    text: Integers
    """Which text each stands in."""
    start: Integers
    """Its first unit among the units of all the texts."""
    stop: Integers
    """The unit after its last."""


class Lookup:
    """A set of hashes in which many are looked up at once."""

    def __init__(self, hashes: Hashes) -> None:
        """Take the hashes, in ascending order and each once."""
        self._hashes = hashes
        bits = max(16, min(26, len(hashes).bit_length() + 4))
        self._shift = np.uint64(64 - bits)
        # Almost every hash that is looked up is not there: one byte tells, without the search.
        self._maybe = np.zeros(1 << bits, bool)
        self._maybe[hashes >> self._shift] = True

    def find(self, hashes: Hashes) -> tuple[Integers, Integers]:
        """Return which of the hashes are in the set, and at which place of the set each of these stands."""
        asked = np.flatnonzero(self._maybe[hashes >> self._shift])
        place = np.searchsorted(self._hashes, hashes[asked])
        there = place < len(self._hashes)
        asked, place = asked[there], place[there]
        there = self._hashes[place] == hashes[asked]
        return asked[there], place[there]


def words(texts: Sequence[str]) -> Units:
    """Cut the texts into words, and into characters where a script puts no spaces between words.

    Case, width and everything that is neither letter nor digit are dropped.
    """
    codes, kinds, text = _classified(texts)
    inside = (kinds == _LETTER) | (kinds == _HANGUL)
    alone = (kinds == _HAN) | (kinds == _KANA) | (kinds == _UNSPACED)
    before = np.concatenate(([False], inside[:-1]))
    after = np.concatenate((inside[1:], [False]))
    starts = np.flatnonzero(alone | (inside & ~before))
    stops = np.flatnonzero(alone | (inside & ~after)) + 1
    return Units(_run_hashes(codes, starts, stops), _WORD_WEIGHTS[kinds[starts]], text[starts])


def characters(texts: Sequence[str]) -> Units:
    """Cut the texts into characters, without case, width, punctuation and spaces."""
    codes, kinds, text = _classified(texts)
    kept = kinds != _BREAK
    return Units(codes[kept], _CHARACTER_WEIGHTS[kinds[kept]], text[kept])


def runs(units: Units, weight: int) -> Runs:
    """List the shortest run of at least this weight from each unit on, as far as its text reaches."""
    reached = np.concatenate(([0], np.cumsum(units.weights)))
    starts = np.arange(len(units.hashes))
    stops = np.searchsorted(reached, reached[:-1] + weight)
    whole = stops <= len(starts)
    starts, stops = starts[whole], stops[whole]
    whole = units.text[starts] == units.text[stops - 1]
    starts, stops = starts[whole], stops[whole]
    return Runs(_run_hashes(units.hashes, starts, stops), units.text[starts], starts, stops)


def shingle_sets(texts: Sequence[str]) -> list[Hashes]:
    """Return the set of shingles of each text, in ascending order; none for a text shorter than one."""
    shingles = runs(characters(texts), SHINGLE_WEIGHT)
    # One number for text and shingle sorts several times as fast as two; 40 bits tell the shingles of two texts apart.
    numbers = np.sort(shingles.text.astype(np.uint64) << np.uint64(40) | shingles.hashes >> np.uint64(24))
    numbers = numbers[np.flatnonzero(np.diff(numbers, prepend=~numbers[:1]))]
    stops = np.searchsorted(numbers, np.arange(1, len(texts), dtype=np.uint64) << np.uint64(40))
    return np.split(numbers << np.uint64(24), stops) if texts else []


def _classified(texts: Sequence[str]) -> tuple[Hashes, npt.NDArray[np.uint8], Integers]:
    """Return the code points of all texts as mixed numbers, their kinds, and which text each belongs to."""
    joined = "\0".join(text.replace("\0", " ") for text in texts)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", joined).casefold())
    points = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[np.minimum(points, _CLASSIFIED)]
    return _mixed(points.astype(np.uint64) + np.uint64(1)), kinds, np.cumsum(points == 0)


@functools.cache
def _kinds() -> npt.NDArray[np.uint8]:
    """Return the kind of each code point that is looked up, and of those above."""
    of_category = {"L": _LETTER, "N": _LETTER, "M": _LETTER, "S": _SYMBOL}
    kinds = np.array(
        [of_category.get(unicodedata.category(chr(point))[0], _BREAK) for point in range(_CLASSIFIED)] + [_HAN],
        np.uint8,
    )
    for first, last, kind in _SCRIPTS:
        kinds[first : last + 1] = np.where(kinds[first : last + 1] == _LETTER, kind, kinds[first : last + 1])
    return kinds


def _run_hashes(values: Hashes, starts: Integers, stops: Integers) -> Hashes:
    """Hash the values from each start to its stop, alike wherever the run stands (a polynomial modulo 2^64)."""
    powers = _powers(_BASE, len(values))
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(values * powers)))
    return _mixed((sums[stops] - sums[starts]) * _powers(_INVERSE, len(values))[starts])


def _powers(base: int, count: int) -> Hashes:
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors)


def _mixed(values: Hashes) -> Hashes:
    """Spread every bit over all bits (the finalizer of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
