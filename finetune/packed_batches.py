"""Which examples share a row where rows are packed, and what that saves: a pure function, as the padded plan is."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetune.batches import (
    BatchPlan,
    Layout,
    MicroBatch,
    count_micro_batches,
    micro_batches_in_step,
    plan_batches,
    plan_epochs,
)

MEASURED_EXAMPLES = 100_000
"""Examples, evenly spread, that the saving is worked out on."""


def plan_packed_batches(
    lengths: Sequence[int],
    tokens_per_step: int,
    tokens_per_micro_batch: int | None,
    devices: int,
    epochs: int,
    seed: int,
) -> BatchPlan:
    """Plan every batch of a run in which a micro-batch is one row of whole examples, without padding.

    A row holds at most its share of `tokens_per_step`, or one longer example. Within a window of a shuffled epoch, the
    longest example that is left goes where it leaves the least room (best-fit decreasing,
    https://en.wikipedia.org/wiki/Best-fit_bin_packing). Every example is in every epoch exactly once.

    Raises:
        DataError: fewer examples than micro-batches in a step.
    """
    per_step = count_micro_batches(len(lengths), tokens_per_step, tokens_per_micro_batch, devices)
    return plan_epochs(_PACKED, lengths, tokens_per_step // per_step, per_step, epochs, seed)


def padding_saved(
    lengths: NDArray[np.int32], tokens_per_step: int, tokens_per_micro_batch: int | None, devices: int, seed: int
) -> float:
    """Return the share of the computed tokens that are padding in a padded epoch, which packing would not compute.

    It is 0 where there are too few examples for a step, which training refuses.
    """
    every = -(-len(lengths) // MEASURED_EXAMPLES)
    measured: list[int] = lengths[::every].tolist()
    if len(measured) < micro_batches_in_step(tokens_per_step, tokens_per_micro_batch, devices):
        return 0.0
    plan = plan_batches(measured, tokens_per_step, tokens_per_micro_batch, devices, 1, seed)
    computed = sum(max(measured[i] for i in batch) * len(batch) for batch in plan.micro_batches)
    return 1 - sum(measured) / computed


def _pack(window: Sequence[int], lengths: Sequence[int], budget: int) -> list[MicroBatch]:
    """Fill rows with the longest examples first, each where it leaves the least room."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # tokens that still fit, and the row, sorted
    for i in sorted(window, key=lambda i: (-lengths[i], i)):
        at = bisect_left(room, (lengths[i], -1))
        if at == len(room):
            rows.append([i])
            left, row = budget - lengths[i], len(rows) - 1
        else:
            left, row = room.pop(at)
            rows[row].append(i)
            left -= lengths[i]
        if left > 0:
            insort(room, (left, row))
    return [tuple(row) for row in rows]


def _halve_alternately(row: MicroBatch) -> list[MicroBatch]:
    """Deal the examples out in turn: a row is sorted by length, and both halves get long ones."""
    return [row[::2], row[1::2]]


_PACKED = Layout(_pack, _halve_alternately)
