"""Cuts a micro-batch into smaller ones that hold the same examples, where memory does not do for all at a time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Batch = Mapping[str, Tensor]
"""`input_ids` and `labels` of shape (B, T), with `attention_mask` where padded, with `position_ids` where packed."""


def cut(batch: Batch, most_tokens: int | None) -> list[Batch]:
    """Cut a batch into pieces of at most so many tokens with padding; a single example stays whole."""
    if most_tokens is None or size_of(batch) <= most_tokens:
        return [batch]
    halves = _halves(batch)
    if halves is None:
        return [batch]
    return [piece for half in halves for piece in cut(half, most_tokens)]


def size_of(batch: Batch) -> int:
    """Count the tokens with padding."""
    return batch["input_ids"].numel()


def can_be_cut(batch: Batch) -> bool:
    """Say whether a batch has more than one example."""
    return _halves(batch) is not None


def _halves(batch: Batch) -> tuple[Batch, Batch] | None:
    if "position_ids" in batch:
        starts = torch.nonzero(batch["position_ids"][0] == 0)[1:, 0]
        if not len(starts):
            return None
        middle = int(starts[(starts - size_of(batch) // 2).abs().argmin()])
        return _columns(batch, slice(None, middle)), _columns(batch, slice(middle, None))
    rows = len(batch["input_ids"])
    if rows == 1:
        return None
    return _trimmed(batch, slice(None, rows // 2)), _trimmed(batch, slice(rows // 2, None))


def _columns(batch: Batch, part: slice) -> Batch:
    return {name: tensor[:, part] for name, tensor in batch.items()}


def _trimmed(batch: Batch, part: slice) -> Batch:
    """Take rows without the columns that are padding in all of them."""
    width = int(batch["attention_mask"][part].sum(1).max())
    return {name: tensor[part, :width] for name, tensor in batch.items()}
