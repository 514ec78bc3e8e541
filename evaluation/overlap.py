"""Finds held-out samples that also stand among the training rows."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.conversation import Conversation
from evaluation.task import Sample

OverlapKind = Literal["exact", "normalized"]
OverlapPart = Literal["prompt", "answer", "both"]
_Key = tuple[OverlapKind, OverlapPart, str, str]


@dataclass(frozen=True)
class TrainPair:
    """A training row: its id for messages, everything before the answer, and the answer."""

    id: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Overlap:
    """A held-out sample and the first training row that it equals."""

    held_out: str
    train: str
    kind: OverlapKind
    """Equal as written, or equal after case, punctuation and spaces are dropped."""
    part: OverlapPart


def prompt_text(prompt: Conversation) -> str:
    """Return what rows are compared by: its messages, one after another, without the system message."""
    return "\n".join(message.content for message in prompt.messages if message.role != "system")


def normalized_for_overlap(text: str) -> str:
    """Return the text in NFKC, casefolded, without punctuation, spaces and control characters."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(char for char in folded if unicodedata.category(char)[0] not in "PZC")
    return unicodedata.normalize("NFKC", kept)


def find_overlaps(
    train: Iterable[TrainPair], samples: Sequence[Sample], *, compare_answers: bool
) -> tuple[Overlap, ...]:
    """Find the samples that stand among the training rows, in time linear in both.

    Each sample is reported once at most, by its strongest overlap: prompt and answer before prompt before
    answer, and as written before normalised. Leave `compare_answers` off for closed sets of answers, where
    every answer is bound to occur in training. A text that normalises to nothing equals no other.
    """
    parts: tuple[OverlapPart, ...] = ("both", "prompt", "answer") if compare_answers else ("both", "prompt")
    first_row: dict[_Key, str] = {}
    for pair in train:
        for key in _keys(pair.prompt, pair.answer, parts):
            first_row.setdefault(key, pair.id)
    found: list[Overlap] = []
    for sample in samples:
        keys = _keys(prompt_text(sample.prompt), sample.reference, parts)
        match = next((key for key in keys if key in first_row), None)
        if match is not None:
            found.append(Overlap(held_out=sample.id, train=first_row[match], kind=match[0], part=match[1]))
    return tuple(found)


def _as_written(text: str) -> str:
    return text


_SPELLINGS: tuple[tuple[OverlapKind, Callable[[str], str]], ...] = (
    ("exact", _as_written),
    ("normalized", normalized_for_overlap),
)


def _keys(prompt: str, answer: str, parts: Sequence[OverlapPart]) -> list[_Key]:
    """List what a row can be found by, strongest first."""
    spelled = [(kind, spell(prompt), spell(answer)) for kind, spell in _SPELLINGS]
    keys: list[_Key] = []
    for part in parts:
        for kind, question, reply in spelled:
            needed = {"both": question and reply, "prompt": question, "answer": reply}[part]
            if needed:
                keys.append((kind, part, "" if part == "answer" else question, "" if part == "prompt" else reply))
    return keys
