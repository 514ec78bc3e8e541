"""Finds samples that are scored among the rows that are trained on."""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from evaluation.conversation import Conversation
from evaluation.overlap_near import NearTexts
from evaluation.overlap_runs import BOILERPLATE_ROWS, RUN_WORDS, SharedRuns
from evaluation.shingles import WORD_WEIGHT, words
from evaluation.task import Sample

LeakKind = Literal["exact", "normalized", "ngram", "near"]
LeakPart = Literal["both", "prompt", "answer"]
_KINDS: tuple[LeakKind, ...] = get_args(LeakKind)
_PARTS: tuple[LeakPart, ...] = get_args(LeakPart)
_Hit = tuple[int, int]
"""A sample and a training row."""

SHORTEST_ANSWER_WORDS = 4
"""Shorter answers ("Yes.", "Not applicable") say nothing without their prompt."""
_BATCH_ROWS = 512
_BATCH_CHARACTERS = 400_000


@dataclass(frozen=True)
class Leak:
    """A sample that stands among the training rows, by its strongest kind."""

    sample: str
    row: int
    """The lowest number of such a training row."""
    kind: LeakKind
    """Equal as written; equal without case, punctuation and spaces; 13 words in a row in common; nearly equal."""
    part: LeakPart


@dataclass(frozen=True)
class FoundLeaks:
    """The samples that leaked, and every training row that one of them was found in."""

    leaks: tuple[Leak, ...]
    rows: frozenset[int]


class _Found(NamedTuple):
    """A leak by numbers; the strongest is the smallest."""

    kind: int
    part: int
    row: int
    sample: int


def prompt_text(prompt: Conversation) -> str:
    """Return what rows are compared by: its messages, one after another, without the system message."""
    return "\n".join(message.content for message in prompt.messages if message.role != "system")


def normalized_for_overlap(text: str) -> str:
    """Return the text in NFKC, casefolded, without punctuation, spaces and control characters."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded.translate(_dropped()))


class LeakIndex:
    """Looks for the samples of one task in training rows that go by; memory grows with the leaks, not with the rows.

    A sample leaks where a training row has its prompt or its answer,

    - exact: as written;
    - normalized: without case, punctuation and spaces;
    - ngram: 13 words in a row of it, wherever in the row, none of which belongs to boilerplate (13 words in a row that
      stand in more than 10 training rows, in more than a fifth of them, or in more than a fifth of the samples); or
      such runs that together make half of it, in however many rows, not counting what 2 % of the samples repeat (the
      instruction of a task) and no prompt of which more than half of the rows have as much;
    - near: with a Jaccard similarity of shingles of at least `similarity`, not counting what the samples' template has.

    An answer counts without its prompt from 4 words on; below 13 words not if it stands in more than 10 rows (a label,
    a set phrase), and not for being near.
    """

    def __init__(self, samples: Sequence[Sample], *, compare_answers: bool, similarity: float) -> None:
        """Take the samples; leave `compare_answers` off for closed sets, where each answer is bound to occur."""
        self._ids = [sample.id for sample in samples]
        prompts = [prompt_text(sample.prompt) for sample in samples]
        answers = [sample.reference if compare_answers else "" for sample in samples]
        self._sides = [_Side(prompts, similarity), *([_Side(answers, similarity)] if compare_answers else [])]
        self._runs = SharedRuns(prompts, answers)
        units = words(answers)
        self._answer_words = np.bincount(units.text, units.weights, len(answers)) / WORD_WEIGHT
        self._best: dict[int, _Found] = {}
        self._short_answers: dict[int, list[_Found]] = defaultdict(list)
        self._leaking: set[int] = set()
        self._waiting: list[tuple[int, str, str]] = []
        self._characters = 0

    def see(self, row: int, prompt: str, answer: str) -> None:
        """Take a training row: its number, everything before the answer (see `prompt_text`), and the answer.

        Each row comes once, however often it is trained on.
        """
        self._waiting.append((row, prompt, answer))
        self._characters += len(prompt) + len(answer)
        if len(self._waiting) >= _BATCH_ROWS or self._characters >= _BATCH_CHARACTERS:
            self._compare()

    def found(self) -> FoundLeaks:
        """Return what the rows so far have of the samples, in the order of the samples."""
        self._compare()
        best, leaking = dict(self._best), set(self._leaking)
        labels = (found for found in self._short_answers.values() if len(found) <= BOILERPLATE_ROWS)
        for one in (*itertools.chain.from_iterable(labels), *self._shared_runs()):
            leaking.add(one.row)
            best[one.sample] = min(one, best.get(one.sample, one))
        leaks = [Leak(self._ids[one.sample], one.row, _KINDS[one.kind], _PARTS[one.part]) for one in best.values()]
        order = {name: number for number, name in enumerate(self._ids)}
        return FoundLeaks(tuple(sorted(leaks, key=lambda leak: order[leak.sample])), frozenset(leaking))

    def _compare(self) -> None:
        """Compare the rows that wait."""
        rows = [row for row, _, _ in self._waiting]
        prompts = [prompt for _, prompt, _ in self._waiting]
        answers = [answer for _, _, answer in self._waiting]
        self._waiting, self._characters = [], 0
        hits = [side.hits(texts) for side, texts in zip(self._sides, (prompts, answers), strict=False)]
        for (sample, place), (kind, part) in _by_part(hits):
            self._keep(_Found(kind, part, rows[place], sample))
        self._runs.see(np.array(rows, np.int64), [f"{p}\n{a}" for p, a in zip(prompts, answers, strict=True)])

    def _keep(self, one: _Found) -> None:
        """Note what was found, unless it is an answer alone that says nothing."""
        length = self._answer_words[one.sample]
        if _PARTS[one.part] == "answer" and length < RUN_WORDS:
            earlier = self._short_answers[one.sample]
            if length >= SHORTEST_ANSWER_WORDS and _KINDS[one.kind] != "near" and len(earlier) <= BOILERPLATE_ROWS:
                earlier.append(one)
            return
        self._leaking.add(one.row)
        self._best[one.sample] = min(one, self._best.get(one.sample, one))

    def _shared_runs(self) -> Iterator[_Found]:
        hits = [dict.fromkeys(pairs, _KINDS.index("ngram")) for pairs in self._runs.shared()]
        for (sample, row), (kind, part) in _by_part(hits):
            yield _Found(kind, part, row, sample)


class _Side:
    """The prompts of all samples, or their answers."""

    def __init__(self, texts: Sequence[str], similarity: float) -> None:
        self._written = texts
        self._near = NearTexts(texts, similarity)
        self._normalized: dict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            self._normalized[normalized_for_overlap(text)].append(number)
        self._normalized.pop("", None)

    def hits(self, texts: Sequence[str]) -> dict[_Hit, int]:
        """Return each sample with the place of each text that it equals, or nearly so, and the kind."""
        found = {hit: _KINDS.index("near") for hit in self._near.see(texts)}
        for place, text in enumerate(texts):
            for sample in self._normalized.get(normalized_for_overlap(text), ()):
                found[sample, place] = _KINDS.index("exact" if self._written[sample] == text else "normalized")
        return found


def _by_part(hits: Sequence[dict[_Hit, int]]) -> Iterator[tuple[_Hit, tuple[int, int]]]:
    """Yield each hit with its kind and part: of prompts, of answers, and of both by the weaker of the two kinds."""
    for part, found in zip(("prompt", "answer"), hits, strict=False):
        yield from ((hit, (kind, _PARTS.index(part))) for hit, kind in found.items())
    if len(hits) > 1:
        for hit in hits[0].keys() & hits[1].keys():
            yield hit, (max(hits[0][hit], hits[1][hit]), _PARTS.index("both"))


class _Dropped(dict[int, int | None]):
    """What `str.translate` does with each character, found out when it is met first."""

    def __missing__(self, point: int) -> int | None:
        self[point] = None if unicodedata.category(chr(point))[0] in "PZC" else point
        return self[point]


@functools.cache
def _dropped() -> _Dropped:
    return _Dropped()
