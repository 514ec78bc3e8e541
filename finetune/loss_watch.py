"""What a loss curve says: whether it ran away from where it began, and whether its second half was worth the time.

Both are told and neither stops a run; `training.early_stopping` does, on the validation rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from finetune.training_records import Divergence, Plateau

START_STEPS = 5
"""The loss at the start is the mean of so many steps."""
DIVERGED_FACTOR = 1.5
"""Times the loss at the start: no batch is that much harder than others for ten steps on end."""
DIVERGED_STEPS = 10
"""Steps on end above the limit."""
PARTS = 10
"""A plateau is judged on tenths of the steps, whose means hold less noise than a step."""
PLATEAU_STEPS = 50
"""Fewer steps make tenths of less than five."""
PLATEAU_FALL = 0.02
"""Share of the loss that the second half has to bring it down by."""


def find_divergence(losses: Sequence[float]) -> Divergence | None:
    """Find the first ten steps on end whose losses are all above one and a half times the mean of the first five."""
    start = fmean(losses[:START_STEPS]) if losses else 0.0
    limit = DIVERGED_FACTOR * start
    above = last = 0
    for step, loss in enumerate(losses[START_STEPS:], start=START_STEPS + 1):
        if loss > limit:
            above, last = above + 1, step
        elif above >= DIVERGED_STEPS:
            break
        else:
            above = 0
    if above < DIVERGED_STEPS:
        return None
    return Divergence(step=last - above + 1, steps=above, start=start, limit=limit)


def diverges_now(losses: Sequence[float]) -> Divergence | None:
    """Return a divergence where the last loss is the one that makes it one: it is told once, while it happens."""
    before = len(losses) - DIVERGED_STEPS
    if before < START_STEPS:
        return None
    start = fmean(losses[:START_STEPS])
    limit = DIVERGED_FACTOR * start
    first_time = before == START_STEPS or losses[before - 1] <= limit
    if not first_time or min(losses[before:]) <= limit:
        return None
    return Divergence(step=before + 1, steps=DIVERGED_STEPS, start=start, limit=limit)


def find_plateau(losses: Sequence[float]) -> Plateau | None:
    """Say whether the lowest tenth of the second half is less than 2 % below the lowest of the first."""
    if len(losses) < PLATEAU_STEPS:
        return None
    edges = [len(losses) * i // PARTS for i in range(PARTS + 1)]
    means = [fmean(losses[a:b]) for a, b in pairwise(edges)]
    first, second = min(means[: PARTS // 2]), min(means[PARTS // 2 :])
    return Plateau(first_half=first, second_half=second) if second > (1 - PLATEAU_FALL) * first else None


def told_divergence(found: Divergence) -> str:
    """Say it in a sentence."""
    return (
        f"the loss diverged: from step {found.step} on it was above {found.limit:.3f} nats for {found.steps} steps,"
        f" {DIVERGED_FACTOR} times the {found.start:.3f} of the first {START_STEPS}"
    )


def told_plateau(found: Plateau) -> str:
    """Say it in a sentence."""
    return (
        f"the loss is on a plateau: {found.first_half:.3f} nats in the best tenth of the first half of the steps,"
        f" {found.second_half:.3f} in that of the second"
    )
