"""Which examples share a batch: a pure function of lengths, budget, seed and epoch.

Examples of near-equal length are put together up to a budget of tokens, so that little is padded; each is a row of
its own, so that none sees another. The order is fixed before training begins: it depends on no generator's state.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune.errors import DataError

WINDOW_STEPS = 16
"""Examples are sorted by length within this many steps' worth of a shuffled epoch: wide enough to pad little, narrow
enough that every step still mixes rows from all over the data."""

MicroBatch = tuple[int, ...]
"""Indices of the examples that one device holds at a time."""


@dataclass(frozen=True)
class Layout:
    """How a window of examples becomes micro-batches."""

    cut: Callable[[Sequence[int], Sequence[int], int], list[MicroBatch]]
    """Takes the examples of a window, the lengths of all, and the budget in tokens."""
    halve: Callable[[MicroBatch], list[MicroBatch]]
    """Makes two of a micro-batch with several examples."""


@dataclass(frozen=True)
class BatchPlan:
    """All micro-batches of a training run, in order; each step has `micro_batches_per_step` of them."""

    micro_batches: tuple[MicroBatch, ...]
    micro_batches_per_step: int

    @property
    def steps(self) -> int:
        """Count the optimizer steps."""
        return len(self.micro_batches) // self.micro_batches_per_step

    def for_rank(self, rank: int, world_size: int) -> list[list[int]]:
        """Return the micro-batches of one process: every world_size-th of each step."""
        assert self.micro_batches_per_step % world_size == 0
        return [list(batch) for batch in self.micro_batches[rank::world_size]]


def plan_batches(
    lengths: Sequence[int],
    tokens_per_step: int,
    tokens_per_micro_batch: int | None,
    devices: int,
    epochs: int,
    seed: int,
) -> BatchPlan:
    """Plan every batch of a run.

    A step holds at most `tokens_per_step` tokens with padding, in as many micro-batches as the memory knob and the
    devices ask for; an example longer than a micro-batch's share is one by itself. Where every micro-batch is a single
    example and they do not come out even, a few of the shortest share one past the limit. Every example is in every
    epoch exactly once.

    Raises:
        DataError: fewer examples than micro-batches in a step.
    """
    per_step = count_micro_batches(len(lengths), tokens_per_step, tokens_per_micro_batch, devices)
    return plan_epochs(_PADDED, lengths, tokens_per_step // per_step, per_step, epochs, seed)


def plan_epochs(
    layout: Layout, lengths: Sequence[int], budget: int, per_step: int, epochs: int, seed: int
) -> BatchPlan:
    """Plan epochs of micro-batches of at most `budget` tokens, such that every step has `per_step` of them."""
    batches: list[MicroBatch] = []
    for epoch in range(epochs):
        batches += _plan_epoch(layout, lengths, budget, per_step, random.Random(f"{seed}/{epoch}"))
    return BatchPlan(tuple(batches), per_step)


def micro_batches_in_step(tokens_per_step: int, tokens_per_micro_batch: int | None, devices: int) -> int:
    """Count the micro-batches that a step is cut into, a multiple of the devices."""
    wanted = math.ceil(tokens_per_step / (tokens_per_micro_batch or tokens_per_step))
    return math.ceil(wanted / devices) * devices


def count_micro_batches(examples: int, tokens_per_step: int, tokens_per_micro_batch: int | None, devices: int) -> int:
    """Count the micro-batches of a step, the same for every device.

    Raises:
        DataError: there are fewer examples.
    """
    per_step = micro_batches_in_step(tokens_per_step, tokens_per_micro_batch, devices)
    if examples < per_step:
        raise DataError(
            f"{examples} training examples cannot fill a step of {per_step} micro-batches",
            where="training",
            hint="use fewer devices, a larger tokens_per_micro_batch, or more rows",
        )
    return per_step


def _plan_epoch(
    layout: Layout, lengths: Sequence[int], budget: int, per_step: int, order: random.Random
) -> list[MicroBatch]:
    shuffled = list(range(len(lengths)))
    order.shuffle(shuffled)
    mean = sum(lengths) / len(lengths)
    window = max(1, int(WINDOW_STEPS * per_step * budget / mean))
    windows = (shuffled[i : i + window] for i in range(0, len(shuffled), window))
    batches = [batch for examples in windows for batch in layout.cut(examples, lengths, budget)]
    order.shuffle(batches)
    while len(batches) % per_step and max(map(len, batches)) > 1:
        widest = max(range(len(batches)), key=lambda i: (len(batches[i]), -i))
        batches += layout.halve(batches.pop(widest))
    while len(batches) % per_step:  # no batch is left to halve: the two shortest rows share one
        one, other = sorted(range(len(batches)), key=lambda i: (len(batches[i]), lengths[batches[i][0]], i))[:2]
        pair = batches[one] + batches[other]
        batches = [batch for i, batch in enumerate(batches) if i not in (one, other)] + [pair]
    return batches


def _cut_by_length(window: Sequence[int], lengths: Sequence[int], budget: int) -> list[MicroBatch]:
    """Cut a window, sorted by length, into batches within the budget, without a small rest."""
    rows = sorted(window, key=lambda i: (lengths[i], i))
    batches: list[MicroBatch] = []
    while rows:
        count = 1
        while count < len(rows) and lengths[rows[-1]] * (count + 1) <= budget:
            count += 1
        batches.append(tuple(rows[-count:]))
        del rows[-count:]
    if len(batches) > 1 and len(batches[-1]) < len(batches[-2]) // 2:
        pooled = batches.pop(-2) + batches.pop()
        half = len(pooled) // 2
        batches += [pooled[:half], pooled[half:]]
    return batches


def _halve_in_the_middle(batch: MicroBatch) -> list[MicroBatch]:
    middle = len(batch) // 2
    return [batch[:middle], batch[middle:]]


_PADDED = Layout(_cut_by_length, _halve_in_the_middle)
