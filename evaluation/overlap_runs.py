"""Finds texts that share a long run of words with a training row, other than words that stand in many of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evaluation.shingles import WORD_WEIGHT, Integers, Lookup, Runs, Units, runs, words

RUN_WORDS = 13
"""Words in a row that two texts have in common by copying only; about 22 Chinese characters."""
BOILERPLATE_ROWS = 10
"""Such a run in more training rows than this, or in more than a fifth of them, is an instruction or a set phrase."""
BOILERPLATE_SHARE = 0.2
"""So is one in a larger share of the samples."""
PHRASE_WORDS = 5
"""And so are fewer words, such as a short instruction, in more than 10 rows …"""
PHRASE_SHARE = 0.01
"""… and in a larger share of the rows."""
_ALWAYS_ALLOWED = 2
"""Nothing is boilerplate that stands in no more rows or samples than this."""


class SharedRuns:
    """Prompts and answers of samples that are looked for in training rows; memory does not grow with the rows."""

    def __init__(self, prompts: Sequence[str], answers: Sequence[str]) -> None:
        """Take the texts of the samples."""
        units = words([*prompts, *answers])
        self._samples = len(prompts)
        self._long = _Counted(units, RUN_WORDS)
        self._phrases = _Counted(units, PHRASE_WORDS)
        self._kept: list[tuple[Integers, Integers]] = []
        self._rows = 0

    def see(self, rows: Integers, texts: Sequence[str]) -> None:
        """Take training rows with all that each says; no row comes twice."""
        self._rows += len(rows)
        units = words(texts)
        self._phrases.count(units)
        key, text = self._long.count(units)
        rare = self._long.rows_with[key] <= BOILERPLATE_ROWS
        self._kept.append((key[rare], rows[text[rare]]))

    def shared(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return each sample with each row that has a run of its prompt, and of its answer.

        A run counts where none of its words belongs to boilerplate.
        """
        long, touched = self._long.runs, self._touched()
        order = np.argsort(self._long.key, kind="stable")
        order = order[~touched[order]]
        key, row = (np.concatenate([np.empty(0, np.int64), *column]) for column in zip(*self._kept, strict=True))
        first = np.searchsorted(self._long.key[order], key)
        last = np.searchsorted(self._long.key[order], key, side="right")
        texts = long.text[order].tolist()
        pairs = sorted(
            {
                (texts[place], number)
                for low, high, number in zip(first.tolist(), last.tolist(), row.tolist(), strict=True)
                for place in range(low, high)
            }
        )
        prompts = [(text, number) for text, number in pairs if text < self._samples]
        return prompts, [(text - self._samples, number) for text, number in pairs if text >= self._samples]

    def _touched(self) -> npt.NDArray[np.bool_]:
        """Tell of each run whether one of its words belongs to boilerplate."""
        allowed = min(BOILERPLATE_ROWS, max(_ALWAYS_ALLOWED, int(BOILERPLATE_SHARE * self._rows)))
        samples = max(_ALWAYS_ALLOWED, BOILERPLATE_SHARE * self._samples)
        usual = (self._long.rows_with > allowed) | (self._long.texts_with > samples)
        phrases = self._phrases.rows_with > max(BOILERPLATE_ROWS, PHRASE_SHARE * self._rows)
        boilerplate = self._long.words_in(usual) | self._phrases.words_in(phrases)
        before = np.concatenate(([0], np.cumsum(boilerplate)))
        return np.asarray(before[self._long.runs.stop] > before[self._long.runs.start])


class _Counted:
    """The runs of a number of words in the samples, and how many rows have each of them."""

    runs: Runs
    key: Integers
    """Which of the different runs each is."""
    texts_with: Integers
    """Of the different runs: how many of the samples' texts have it."""
    rows_with: Integers
    """Of the different runs: how many training rows have it."""

    def __init__(self, units: Units, length: int) -> None:
        self._units = len(units.hashes)
        self._weight = length * WORD_WEIGHT
        self.runs = runs(units, self._weight)
        keys, self.key = np.unique(self.runs.hashes, return_inverse=True)
        self._lookup = Lookup(keys)
        self.texts_with = np.bincount(_pairs(self.key, self.runs.text)[0], minlength=len(keys))
        self.rows_with = np.zeros(len(keys), np.int64)

    def count(self, units: Units) -> tuple[Integers, Integers]:
        """Count the rows that have each run, and return each run with each row of these that has it."""
        found = runs(units, self._weight)
        at, key = self._lookup.find(found.hashes)
        key, text = _pairs(key, found.text[at])
        np.add.at(self.rows_with, key, 1)
        return key, text

    def words_in(self, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Tell of each word of the samples whether it belongs to one of the chosen runs."""
        edges = np.zeros(self._units + 1, np.int64)
        np.add.at(edges, self.runs.start[chosen[self.key]], 1)
        np.add.at(edges, self.runs.stop[chosen[self.key]], -1)
        return np.cumsum(edges)[:-1] > 0


def _pairs(key: Integers, text: Integers) -> tuple[Integers, Integers]:
    """Return the different pairs."""
    width = int(text.max(initial=0)) + 1
    together = np.unique(key * width + text)
    return together // width, together % width
