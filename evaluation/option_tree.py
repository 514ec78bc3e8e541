"""All options of a choice in one pass: branches of a tree on the prompt.

The prompt is written once, the options one after another behind it. Each option's tokens stand at the positions right
after the prompt and see the prompt and their own option alone, so that every log-likelihood is what it would be with
that option by itself, at the cost of one prompt instead of one per option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class OptionTree:
    """A prompt with its options behind it."""

    input_ids: tuple[int, ...]
    """The prompt, then each option without its last token, which nothing needs to follow."""
    prompt_length: int
    answers: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class TreeBatch:
    """Trees padded to one width T; N counts the answer tokens of all options of all trees, in order."""

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    attention_B1TT: Tensor
    """0 where a token may look, the lowest number of the type where it may not."""
    predictor_rows_N: Tensor
    predictor_columns_N: Tensor
    """Where the hidden state stands that predicts each target."""
    targets_N: Tensor
    answer_lengths: tuple[int, ...]


def build_option_tree(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> OptionTree:
    """Lay out a prompt and its options; every option has at least one token."""
    assert prompt
    assert all(answers)
    branches = tuple(token for answer in answers for token in answer[:-1])
    return OptionTree((*prompt, *branches), len(prompt), tuple(tuple(answer) for answer in answers))


def pad_trees(trees: Sequence[OptionTree], padding: int, dtype: torch.dtype) -> TreeBatch:
    """Pad trees on the right; a padding token sees only itself and is seen by none."""
    width = max(len(tree.input_ids) for tree in trees)
    ids = torch.full((len(trees), width), padding)
    positions = torch.zeros((len(trees), width), dtype=torch.long)
    visible = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    rows: list[int] = []
    columns: list[int] = []
    for row, tree in enumerate(trees):
        length = len(tree.input_ids)
        ids[row, :length] = torch.tensor(tree.input_ids)
        positions[row, : tree.prompt_length] = torch.arange(tree.prompt_length)
        visible[row, :length, : tree.prompt_length] |= torch.ones(length, tree.prompt_length, dtype=torch.bool).tril()
        start = tree.prompt_length
        for answer in tree.answers:
            stop = start + len(answer) - 1
            positions[row, start:stop] = torch.arange(tree.prompt_length, tree.prompt_length + stop - start)
            visible[row, start:stop, start:stop] |= torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
            columns += [tree.prompt_length - 1, *range(start, stop)]
            rows += [row] * len(answer)
            start = stop
    attention = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    return TreeBatch(
        input_ids_BT=ids,
        position_ids_BT=positions,
        attention_B1TT=attention[:, None],
        predictor_rows_N=torch.tensor(rows),
        predictor_columns_N=torch.tensor(columns),
        targets_N=torch.tensor([token for tree in trees for answer in tree.answers for token in answer]),
        answer_lengths=tuple(len(answer) for tree in trees for answer in tree.answers),
    )
