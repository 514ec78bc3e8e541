"""The packed plan mixes rows, shares every step between processes, and depends on seed and epoch alone."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from finetune.packed_batches import plan_packed_batches

LENGTHS = [5 + (i * 37) % 90 for i in range(200)]


def test_seed_and_epoch_decide_the_order_and_nothing_else_does() -> None:
    first = plan_packed_batches(LENGTHS, 512, 128, 1, 2, 3)
    random.seed(99)
    assert plan_packed_batches(LENGTHS, 512, 128, 1, 2, 3) == first
    assert plan_packed_batches(LENGTHS, 512, 128, 1, 2, 4).micro_batches != first.micro_batches
    epochs = [[i for row in first.micro_batches for i in row][start : start + 200] for start in (0, 200)]
    assert epochs[0] != epochs[1]
    assert plan_packed_batches(LENGTHS, 512, 128, 1, 1, 3).micro_batches == first.micro_batches[: first.steps * 2]


def test_a_step_holds_its_tokens_and_every_process_has_its_rows() -> None:
    for devices in (1, 2, 4):
        plan = plan_packed_batches(LENGTHS, 1024, 256, devices, 1, 0)
        assert plan.micro_batches_per_step == 4
        assert max(sum(LENGTHS[i] for i in row) for row in plan.micro_batches) <= 256
        ranks = [plan.for_rank(rank, devices) for rank in range(devices)]
        assert {len(rank) for rank in ranks} == {plan.steps * 4 // devices}
        assert sorted(i for rank in ranks for row in rank for i in row) == list(range(200))


def test_steps_mix_lengths_and_places() -> None:
    lengths = [8 + (i * 7919) % 250 for i in range(2000)]
    rows = plan_packed_batches(lengths, 1024, None, 1, 1, 0).micro_batches
    for start in range(0, len(rows), len(rows) // 8):
        part = [i for row in rows[start : start + len(rows) // 8] for i in row]
        if len(part) > 100:
            assert sum(lengths[i] for i in part) / len(part) == pytest.approx(sum(lengths) / 2000, rel=0.2)
            assert sum(part) / len(part) == pytest.approx(1000, rel=0.25)
    # Filling makes rows of a few long examples before rows of many short ones; training must not meet them so.
    counts = [len(row) for row in rows]
    rises = sum(later > earlier for earlier, later in pairwise(counts))
    falls = sum(later < earlier for earlier, later in pairwise(counts))
    assert rises == pytest.approx(falls, rel=0.2)


def test_longer_than_a_row_stands_alone_and_rows_come_out_even() -> None:
    rows = plan_packed_batches([500, *[10] * 40], 400, 100, 1, 1, 0).micro_batches
    assert (0,) in rows
    assert len(rows) % 4 == 0
    for count in range(8, 17):
        plan = plan_packed_batches([100 + i for i in range(count)], 8 * 128, 128, 1, 1, 0)
        assert plan.steps == count // 8
        paired = sorted(i for row in plan.micro_batches if len(row) > 1 for i in row)
        assert paired == list(range(2 * (count % 8)))  # the shortest
