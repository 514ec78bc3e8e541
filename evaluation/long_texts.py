"""Cuts a text that is too long for the model into pieces, and puts pieces together again: nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.rendering import IGNORE, Example


def split_example(example: Example, most: int) -> list[Example]:
    """Cut a text into pieces of at most `most` tokens; every token is learned exactly once.

    A piece begins with the last token of the one before, not learned again: something must come before its first one.
    """
    starts = range(0, max(1, len(example.input_ids) - 1), most - 1)
    pieces = [(example.input_ids[i : i + most], example.labels[i : i + most]) for i in starts]
    first, *others = pieces
    return [Example(*first), *(Example(ids, (IGNORE, *labels[1:])) for ids, labels in others)]


def joined(pieces: Sequence[Example]) -> Example:
    """Put the pieces of a split text together again."""
    first, *others = pieces
    if not others:
        return first
    ids, labels = list(first.input_ids), list(first.labels)
    for piece in others:
        ids += piece.input_ids[1:]
        labels += piece.labels[1:]
    return Example(tuple(ids), tuple(labels))
