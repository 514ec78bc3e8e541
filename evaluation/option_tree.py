"""All options of a choice in one pass: a tree whose root is the prompt.

The prompt is written once, and behind it the options, those with the same beginning sharing it. Each token of an
option stands at the position that it would have right after the prompt, and sees the prompt and its own option alone,
so that every log-likelihood is what it would be with that option by itself, at the cost of one prompt instead of one
per option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OptionTree:
    """A prompt with its options behind it; a column is an index into `input_ids`."""

    input_ids: tuple[int, ...]
    """The prompt, then every beginning that an option has, each once; last tokens are not needed to be read."""
    prompt_length: int
    parents: tuple[int, ...]
    """For every column behind the prompt: the column that it follows."""
    answers: tuple[tuple[int, ...], ...]
    predictors: tuple[tuple[int, ...], ...]
    """For every token of every answer: the column whose hidden state predicts it."""


@dataclass(frozen=True)
class TreeBatch:
    """Trees padded to one width T; U counts the predicting columns of all trees, N the answer tokens, in order."""

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    attention_B1TS: Tensor
    """0 where a token may look, the lowest number of the type where it may not; S counts what was read before, too."""
    rows_U: Tensor
    columns_U: Tensor
    """Where the hidden states stand that predict something."""
    predictor_N: Tensor
    """Which of the U predicts each token."""
    targets_N: Tensor
    answer_lengths: tuple[int, ...]


def build_option_tree(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> OptionTree:
    """Lay out a prompt and its options; every option has at least one token."""
    assert prompt
    assert all(answers)
    tokens, parents = list(prompt), []
    column_of: dict[tuple[int, int], int] = {}
    predictors = []
    for answer in answers:
        column = len(prompt) - 1
        path = [column]
        for token in answer[:-1]:
            if (column, token) not in column_of:
                column_of[column, token] = len(tokens)
                tokens.append(token)
                parents.append(column)
            column = column_of[column, token]
            path.append(column)
        predictors.append(tuple(path))
    return OptionTree(
        tuple(tokens), len(prompt), tuple(parents), tuple(tuple(answer) for answer in answers), tuple(predictors)
    )


def pad_trees(trees: Sequence[OptionTree], read: int, padding: int, dtype: torch.dtype) -> TreeBatch:
    """Pad trees on the right; a padding token is seen by none.

    The first `read` tokens of every prompt are the same and were read before: they are left out, and all see them.
    """
    width = max(len(tree.input_ids) for tree in trees)
    ids = torch.full((len(trees), width), padding)
    positions = torch.zeros((len(trees), width), dtype=torch.long)
    visible = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    predicting: list[tuple[int, int]] = []
    predictor: list[int] = []
    for row, tree in enumerate(trees):
        ids[row, : len(tree.input_ids)] = torch.tensor(tree.input_ids)
        positions[row, : len(tree.input_ids)], seen = _positions_and_sight(tree)
        visible[row, : len(tree.input_ids), : len(tree.input_ids)] = seen
        columns = sorted({column for path in tree.predictors for column in path})
        number = {column: len(predicting) + i for i, column in enumerate(columns)}
        predicting += [(row, column) for column in columns]
        predictor += [number[column] for path in tree.predictors for column in path]
    attention = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    return TreeBatch(
        input_ids_BT=ids[:, read:],
        position_ids_BT=positions[:, read:],
        attention_B1TS=attention[:, None, read:],
        rows_U=torch.tensor([row for row, _ in predicting]),
        columns_U=torch.tensor([column - read for _, column in predicting]),
        predictor_N=torch.tensor(predictor),
        targets_N=torch.tensor([token for tree in trees for answer in tree.answers for token in answer]),
        answer_lengths=tuple(len(answer) for tree in trees for answer in tree.answers),
    )


def _positions_and_sight(tree: OptionTree) -> tuple[Tensor, Tensor]:
    """Return the position of every column (T,), and which columns it sees (T, T): its ancestors and itself."""
    length = len(tree.input_ids)
    positions = list(range(tree.prompt_length))
    seen = torch.eye(length, dtype=torch.bool)
    seen[: tree.prompt_length, : tree.prompt_length] = torch.ones(tree.prompt_length, tree.prompt_length).tril().bool()
    for column, parent in enumerate(tree.parents, start=tree.prompt_length):
        positions.append(positions[parent] + 1)
        seen[column] |= seen[parent]
    return torch.tensor(positions), seen
