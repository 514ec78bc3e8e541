"""Finds training rows that are nearly equal to one of a few texts: all of them, not only most."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from evaluation.shingles import Hashes, Integers, Lookup, shingle_sets

TEMPLATE_SHARE = 0.2
"""Shingles in a larger share of the texts belong to their template; that two texts share them says nothing."""
_ALWAYS_ALLOWED = 2
_NEEDED_SHARE = 0.15
"""How many of the rarest shingles a row must have to be compared: fewer candidates for a longer list of them."""


class NearTexts:
    """Texts that are looked for.

    Two texts are as similar as the share of the shingles of either that stand in both (Jaccard), where shingles of
    the template that stand in both are not counted at all. Of n shingles beside the template's, a text with a
    similarity of s or more has at least s·n, and therefore k of the (1 - s)·n + k rarest. So only these are looked up
    in each row, and no pair is missed.
    """

    def __init__(self, texts: Sequence[str], similarity: float) -> None:
        """Take the texts, and the least similarity in (0, 1]."""
        self._similarity = similarity
        distinct: dict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            distinct[text].append(number)
        self._numbers = list(distinct.values())
        self._sets = shingle_sets(list(distinct))
        self._sizes = np.array([len(one) for one in self._sets], np.int64)
        shingles, many = np.unique(_joined(self._sets), return_counts=True)
        often = many > max(_ALWAYS_ALLOWED, TEMPLATE_SHARE * len(distinct))
        self._template = [often[np.searchsorted(shingles, one)] for one in self._sets]
        own = [one[~template] for one, template in zip(self._sets, self._template, strict=True)]
        self._needed = np.array([max(1, int(_NEEDED_SHARE * len(one))) for one in own], np.int64)
        rarest = [
            self._rarest(one, many[np.searchsorted(shingles, one)], needed)
            for one, needed in zip(own, self._needed.tolist(), strict=True)
        ]
        owner = np.repeat(np.arange(len(rarest)), [len(one) for one in rarest])
        order = np.argsort(_joined(rarest), kind="stable")
        self._owners = owner[order]
        keys, self._first, self._owned = np.unique(_joined(rarest)[order], return_index=True, return_counts=True)
        self._lookup = Lookup(keys)

    def see(self, texts: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Yield each text that is looked for with the place of a nearly equal one in `texts`."""
        sets = shingle_sets(texts)
        for number, place in self._candidates(sets):
            if self._similarity_of(number, sets[place]) >= self._similarity:
                yield from ((one, place) for one in self._numbers[number])

    def _rarest(self, own: Hashes, many: Integers, needed: int) -> Hashes:
        order = np.lexsort((own, many))
        return own[order[: len(own) - math.ceil(self._similarity * len(own) - 1e-9) + needed]]

    def _candidates(self, sets: Sequence[Hashes]) -> Iterator[tuple[int, int]]:
        """Yield each text with the rows of about its length that have enough of its rarest shingles."""
        sizes = np.array([len(one) for one in sets], np.int64)
        owner = np.repeat(np.arange(len(sets)), sizes)
        at, key = self._lookup.find(_joined(sets))
        owned = self._owned[key]
        within = np.arange(owned.sum()) - np.repeat(np.cumsum(owned) - owned, owned)
        number = self._owners[np.repeat(self._first[key], owned) + within]
        pairs, times = np.unique(np.repeat(owner[at], owned) * len(self._sets) + number, return_counts=True)
        place, number = np.divmod(pairs, max(1, len(self._sets)))
        small, large = np.minimum(self._sizes[number], sizes[place]), np.maximum(self._sizes[number], sizes[place])
        kept = (times >= self._needed[number]) & (small >= self._similarity * large - 1e-9)
        yield from zip(number[kept].tolist(), place[kept].tolist(), strict=True)

    def _similarity_of(self, number: int, other: Hashes) -> float:
        own, template = self._sets[number], self._template[number]
        place = np.minimum(np.searchsorted(own, other), len(own) - 1)
        shared = place[own[place] == other]
        usual = int(np.count_nonzero(template[shared]))
        return (len(shared) - usual) / max(1, len(own) + len(other) - len(shared) - usual)


def _joined(sets: Sequence[Hashes]) -> Hashes:
    return np.concatenate([np.empty(0, np.uint64), *sets])
