from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune.batches import BatchPlan, plan_batches
from finetune.errors import DataError


@st.composite
def wishes(draw: st.DrawFn) -> tuple[list[int], int, int | None, int, int, int]:
    lengths = draw(st.lists(st.integers(2, 120), min_size=1, max_size=120))
    tokens = draw(st.integers(16, 600))
    micro = draw(st.none() | st.integers(8, 600))
    return lengths, tokens, micro, draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 2**32 - 1))


def plan_or_skip(wish: tuple[list[int], int, int | None, int, int, int]) -> BatchPlan:
    lengths, tokens, micro, devices, epochs, seed = wish
    try:
        return plan_batches(lengths, tokens, micro, devices, epochs, seed)
    except DataError:
        assume(False)
        raise


def share(wish: tuple[list[int], int, int | None, int, int, int], plan: BatchPlan) -> int:
    return wish[1] // plan.micro_batches_per_step


@settings(max_examples=300, deadline=None)
@given(wish=wishes())
def test_every_plan_keeps_its_promises(wish: tuple[list[int], int, int | None, int, int, int]) -> None:
    lengths, tokens, micro, devices, epochs, _ = wish
    plan = plan_or_skip(wish)
    size = plan.micro_batches_per_step
    assert size % devices == 0
    assert size >= tokens / (micro or tokens)
    assert len(plan.micro_batches) % size == 0
    assert plan.steps == len(plan.micro_batches) // size

    seen = [i for batch in plan.micro_batches for i in batch]
    for epoch in range(epochs):
        part = seen[epoch * len(lengths) : (epoch + 1) * len(lengths)]
        assert sorted(part) == list(range(len(lengths)))  # no epoch begins before the last one ended
    assert len(seen) == epochs * len(lengths)

    for batch in plan.micro_batches:
        assert batch
    within = [
        len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= share(wish, plan)
        for batch in plan.micro_batches
    ]
    if not all(within):
        # Single rows that do not come out even: in each epoch, fewer pairs than a step has batches, of the shortest.
        assert within.count(False) <= epochs * (size - 1)
        longest_paired = max(
            lengths[i] for batch, fits in zip(plan.micro_batches, within, strict=True) if not fits for i in batch
        )
        assert sum(length < longest_paired for length in lengths) < 2 * size
    elif max(lengths) <= share(wish, plan):
        padded = [max(lengths[i] for i in batch) * len(batch) for batch in plan.micro_batches]
        assert all(sum(padded[i : i + size]) <= tokens for i in range(0, len(padded), size))
        assert micro is None or max(padded) <= micro


@settings(max_examples=100, deadline=None)
@given(wish=wishes())
def test_processes_share_every_step_between_them(wish: tuple[list[int], int, int | None, int, int, int]) -> None:
    plan, devices = plan_or_skip(wish), wish[3]
    ranks = [plan.for_rank(rank, devices) for rank in range(devices)]
    each = plan.micro_batches_per_step // devices
    assert {len(rank) for rank in ranks} == {plan.steps * each}
    for step in range(plan.steps):
        first = step * plan.micro_batches_per_step
        whole = [list(batch) for batch in plan.micro_batches[first : first + plan.micro_batches_per_step]]
        parts = [batch for rank in ranks for batch in rank[step * each : (step + 1) * each]]
        assert sorted(parts) == sorted(whole)
    assert plan.for_rank(0, 1) == [list(batch) for batch in plan.micro_batches]


def test_world_that_does_not_divide_a_step_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError):
        plan_batches([10] * 20, 100, 50, 1, 1, 0).for_rank(0, 3)


LENGTHS = [5 + (i * 37) % 90 for i in range(200)]


def test_seed_and_epoch_decide_the_order_and_nothing_else_does() -> None:
    import random

    first = plan_batches(LENGTHS, 512, 128, 1, 2, 3)
    random.seed(99)
    assert plan_batches(LENGTHS, 512, 128, 1, 2, 3) == first
    assert plan_batches(LENGTHS, 512, 128, 1, 2, 4).micro_batches != first.micro_batches
    epochs = [[i for batch in first.micro_batches for i in batch][start : start + 200] for start in (0, 200)]
    assert epochs[0] != epochs[1]
    assert (
        plan_batches(LENGTHS, 512, 128, 1, 1, 3).micro_batches == first.micro_batches[: len(first.micro_batches) // 2]
    )


def test_plan_is_the_same_in_every_process() -> None:
    code = (
        "from finetune.batches import plan_batches;"
        "print(plan_batches([5 + (i * 37) % 90 for i in range(200)], 512, 128, 2, 2, 3))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1", "12345")
    }
    assert said == {str(plan_batches(LENGTHS, 512, 128, 2, 2, 3))}


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_tokens_of_a_step_do_not_depend_on_the_devices(devices: int) -> None:
    plan = plan_batches(LENGTHS, 1024, 256, devices, 1, 0)
    assert plan.micro_batches_per_step == 4
    assert plan.steps == plan_batches(LENGTHS, 1024, 256, 1, 1, 0).steps == 12


def test_little_is_padded_and_steps_still_mix_lengths() -> None:
    lengths = [8 + (i * 7919) % 250 for i in range(2000)]
    plan = plan_batches(lengths, 2048, 1024, 1, 1, 0)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in plan.micro_batches)
    assert padded <= 1.1 * sum(lengths)
    quarter = [i for batch in plan.micro_batches[: len(plan.micro_batches) // 4] for i in batch]
    mean = sum(lengths[i] for i in quarter) / len(quarter)
    assert mean == pytest.approx(sum(lengths) / len(lengths), rel=0.2)


def test_too_few_examples_for_a_step_are_refused() -> None:
    with pytest.raises(DataError, match="3 training examples cannot fill a step of 4 micro-batches"):
        plan_batches([10] * 3, 400, 100, 1, 1, 0)
    assert plan_batches([10] * 4, 400, 100, 1, 1, 0).steps == 1
    with pytest.raises(DataError, match="6 micro-batches"):
        plan_batches([10] * 5, 400, 100, 3, 1, 0)


@pytest.mark.parametrize("count", range(8, 17))
def test_rows_too_long_to_share_a_batch_come_out_even(count: int) -> None:
    lengths = [100 + i for i in range(count)]
    plan = plan_batches(lengths, 8 * 128, 128, 1, 1, 0)
    assert plan.micro_batches_per_step == 8
    assert plan.steps == count // 8
    assert sorted(i for batch in plan.micro_batches for i in batch) == list(range(count))
    pairs = [batch for batch in plan.micro_batches if len(batch) > 1]
    assert sorted(i for pair in pairs for i in pair) == list(range(2 * (count % 8)))  # the shortest


def test_memory_knob_rounds_up() -> None:
    for micro in (1000, 334, 333, 100):
        assert plan_batches([10] * 300, 1000, micro, 1, 1, 0).micro_batches_per_step == math.ceil(1000 / micro)
