"""Finds texts that share a long run of words with a training row, other than words that stand in many of them.

Where what a text shares with one row is at least half of it, it counts however many rows have it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evaluation.shingles import WORD_WEIGHT, Integers, Lookup, Runs, Units, runs, words

Marks = npt.NDArray[np.bool_]
_Pairs = tuple[Integers, Integers]

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
COVERED_SHARE = 0.5
"""A row that has this share of a prompt or an answer is a leak, in however many rows the same stands."""
TEMPLATE_SHARE = 0.02
"""Runs in a larger share of the samples are left out of that share: each task of a mixture has an instruction."""
TEMPLATE_PHRASE_SHARE = 0.05
"""So are phrases, which are more often of the language than of a template."""
INSTRUCTION_SHARE = 0.5
"""What a larger share of the rows has of a prompt is an instruction; one or two samples cannot show that."""


class SharedRuns:
    """Prompts and answers of samples that are looked for in training rows; memory grows with the leaks alone."""

    def __init__(self, prompts: Sequence[str], answers: Sequence[str]) -> None:
        """Take the texts of the samples."""
        units = words([*prompts, *answers])
        self._samples = len(prompts)
        self._long = _Counted(units, RUN_WORDS)
        self._phrases = _Counted(units, PHRASE_WORDS)
        self._own = _OwnWords(units, self._long, self._own_template())
        self._kept: list[_Pairs] = []
        self._covered: list[_Pairs] = []
        self._rows = 0

    def see(self, rows: Integers, texts: Sequence[str]) -> None:
        """Take training rows with all that each says; no row comes twice."""
        self._rows += len(rows)
        units = words(texts)
        self._phrases.count(units)
        key, text = self._long.count(units)
        rare = self._long.rows_with[key] <= BOILERPLATE_ROWS
        covered = self._own.covered(key, rows[text])
        # Most batches leave nothing, and many empty arrays are as large as a few rows.
        if rare.any():
            self._kept.append((key[rare], rows[text[rare]]))
        if len(covered[0]):
            self._covered.append(covered)

    def shared(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return each sample with each row that has a run of its prompt, and of its answer.

        A run counts where none of its words belongs to boilerplate, or where the row has half of the text.
        """
        key, row = _joined(self._kept)
        place, which = _Places(self._long, self._long.apart_from(self._boilerplate())).of(key)
        rare = self._long.runs.text[place], row[which]
        found = (zip(text.tolist(), row.tolist(), strict=True) for text, row in (rare, self._without_instructions()))
        pairs = sorted(set(itertools.chain.from_iterable(found)))
        prompts = [(text, number) for text, number in pairs if text < self._samples]
        return prompts, [(text - self._samples, number) for text, number in pairs if text >= self._samples]

    def _without_instructions(self) -> _Pairs:
        """Return each text with each row that covers it, but for prompts that are instructions above all."""
        text, row = _joined(self._covered)
        rows_with = np.bincount(text, minlength=self._samples)[: self._samples]
        instruction = np.flatnonzero(rows_with > INSTRUCTION_SHARE * self._rows)
        kept = ~np.isin(text, instruction)
        return text[kept], row[kept]

    def _boilerplate(self) -> Marks:
        """Tell of each word whether it belongs to what many of the rows or samples have."""
        allowed = min(BOILERPLATE_ROWS, max(_ALWAYS_ALLOWED, int(BOILERPLATE_SHARE * self._rows)))
        usual = (self._long.rows_with > allowed) | (self._long.texts_with > self._most(BOILERPLATE_SHARE))
        phrases = self._phrases.rows_with > max(BOILERPLATE_ROWS, PHRASE_SHARE * self._rows)
        return self._long.words_in(usual) | self._phrases.words_in(phrases)

    def _own_template(self) -> Marks:
        """Tell of each word whether it belongs to what the samples repeat."""
        usual = self._long.texts_with > self._most(TEMPLATE_SHARE)
        phrases = self._phrases.texts_with > self._most(TEMPLATE_PHRASE_SHARE)
        return self._long.words_in(usual) | self._phrases.words_in(phrases)

    def _most(self, share: float) -> float:
        return max(_ALWAYS_ALLOWED, share * self._samples)


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
        """Take the words of the samples, and how many make a run."""
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

    def words_in(self, chosen: Marks) -> Marks:
        """Tell of each word of the samples whether it belongs to one of the chosen runs."""
        edges = np.zeros(self._units + 1, np.int64)
        np.add.at(edges, self.runs.start[chosen[self.key]], 1)
        np.add.at(edges, self.runs.stop[chosen[self.key]], -1)
        return np.cumsum(edges)[:-1] > 0

    def apart_from(self, marked: Marks) -> Marks:
        """Tell of each run whether none of its words is marked."""
        before = np.concatenate(([0], np.cumsum(marked)))
        return np.asarray(before[self.runs.stop] == before[self.runs.start])


class _Places:
    """Where in the samples each of the different runs stands."""

    def __init__(self, counted: _Counted, counts: Marks) -> None:
        """Take the runs, and which of them are looked at."""
        order = np.argsort(counted.key, kind="stable")
        self._order = order[counts[order]]
        self._first = np.searchsorted(counted.key[self._order], np.arange(len(counted.rows_with) + 1))

    def of(self, key: Integers) -> tuple[Integers, Integers]:
        """Return every place of every key, and which of the keys stands there."""
        first = self._first[key]
        many = self._first[key + 1] - first
        which = np.repeat(np.arange(len(key)), many)
        within = np.arange(len(which)) - np.repeat(np.cumsum(many) - many, many)
        return self._order[first[which] + within], which


class _OwnWords:
    """The words of each text of the samples beside their template, and how many of them a row has."""

    def __init__(self, units: Units, long: _Counted, template: Marks) -> None:
        """Take the words, their runs, and which words are the template's."""
        self._runs = long.runs
        self._places = _Places(long, long.apart_from(template))
        self._reached = np.concatenate(([0], np.cumsum(units.weights)))
        self._needed = COVERED_SHARE * np.bincount(units.text, units.weights * ~template)

    def covered(self, key: Integers, row: Integers) -> _Pairs:
        """Return each text with each row that has enough of it, from each run with each row that has it."""
        place, which = self._places.of(key)
        row = row[which]
        order = np.lexsort((place, row))
        place, row = place[order], row[order]
        text, start, stop = self._runs.text[place], self._runs.start[place], self._runs.stop[place]
        new = (np.diff(row, prepend=-1) != 0) | (np.diff(text, prepend=-1) != 0)
        # Runs of one length end in the order in which they begin: each adds what lies behind the end of the last.
        begin = np.where(new, start, np.maximum(start, np.roll(stop, 1)))
        first = np.flatnonzero(new)
        words = np.add.reduceat(self._reached[stop] - self._reached[begin], first) if len(first) else first
        enough = words >= self._needed[text[first]]
        return text[first][enough], row[first][enough]


def _joined(parts: Sequence[_Pairs]) -> _Pairs:
    none: _Pairs = (np.empty(0, np.int64), np.empty(0, np.int64))
    first, second = zip(none, *parts, strict=True)
    return np.concatenate(first), np.concatenate(second)


def _pairs(key: Integers, text: Integers) -> _Pairs:
    """Return the different pairs."""
    width = int(text.max(initial=0)) + 1
    together = np.unique(key * width + text)
    return together // width, together % width
