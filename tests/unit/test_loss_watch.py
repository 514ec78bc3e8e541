"""What is called a divergence and what a plateau."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from report_inputs import inputs as report_inputs

from finetune.loss_watch import (
    diverges_now,
    find_divergence,
    find_plateau,
    told_divergence,
    told_plateau,
)
from finetune.report import build_report
from finetune.report_html import render_html
from finetune.report_markdown import render_markdown
from finetune.training_records import Divergence, MemorySetting, Plateau

START = [2.0] * 5


@pytest.mark.parametrize(
    ("after", "found"),
    [
        ([], None),
        ([1.5] * 100, None),
        ([3.1] * 9, None),
        ([3.1] * 10, Divergence(step=6, steps=10, start=2.0, limit=3.0)),
        ([3.0] + [3.1] * 10, Divergence(step=7, steps=10, start=2.0, limit=3.0)),
        ([3.0] * 100, None),
        ([3.1] * 9 + [2.9] + [3.1] * 9, None),
        ([1.0] * 20 + [9.0] * 12 + [1.0] * 5, Divergence(step=26, steps=12, start=2.0, limit=3.0)),
        ([9.0] * 11 + [1.0] * 5 + [9.0] * 30, Divergence(step=6, steps=11, start=2.0, limit=3.0)),
    ],
)
def test_divergence_is_ten_steps_on_end_above_one_and_a_half_times_the_start(
    after: list[float], found: Divergence | None
) -> None:
    assert find_divergence(START + after) == found


def test_few_steps_are_no_divergence() -> None:
    assert [find_divergence(losses) for losses in ([], [1.0], [1.0, 99.0])] == [None] * 3


@pytest.mark.parametrize("seed", range(50))
def test_it_is_told_once_and_when_it_happens(seed: int) -> None:
    draw = random.Random(seed)
    losses = START + [draw.choice([1.0, 3.0, *[9.0] * 10]) for _ in range(200)]
    told = [(end, found) for end in range(len(losses) + 1) if (found := diverges_now(losses[:end]))]
    runs, above = [], 0
    for step, loss in enumerate(losses, start=1):
        above = above + 1 if loss > 3.0 and step > 5 else 0
        if above == 10:
            runs.append(step)
    assert [end for end, _ in told] == runs
    assert all(found.step == end - 9 for end, found in told)
    first = find_divergence(losses)
    assert (first is None) == (not runs)
    assert first is None or first.step == told[0][1].step


def test_plateau_is_a_second_half_that_brings_the_loss_down_by_less_than_two_percent() -> None:
    falling = [2.0 - i / 200 for i in range(200)]
    flat = [2.0 - min(i, 80) / 200 for i in range(200)]
    barely = [*[1.0] * 100, *[0.979] * 100]
    assert find_plateau(falling) is None
    found = find_plateau(flat)
    assert found is not None
    assert found.second_half == pytest.approx(1.6)
    assert find_plateau(barely) is None
    assert find_plateau([*[1.0] * 100, *[0.981] * 100]) is not None
    assert find_plateau([*[100.0] * 100, *[98.0] * 100]) is None, "two percent are enough"
    rising = find_plateau([*[1.0] * 100, *[1.5] * 100])
    assert rising is not None
    assert (rising.first_half, rising.second_half) == (1.0, 1.5)
    assert find_plateau([1.0] * 49) is None
    assert find_plateau([1.0] * 50) is not None


def test_report_tells_of_memory_and_of_the_curve() -> None:
    inputs = report_inputs()
    quiet = build_report(inputs)
    assert "neither a divergence nor a plateau" in render_markdown(quiet)
    assert "batches as planned" in render_html(quiet)
    diverged = Divergence(step=26, steps=12, start=2.0, limit=3.0)
    flat = Plateau(first_half=1.0, second_half=0.981)
    memory = MemorySetting(tokens_per_micro_batch=256, gradient_checkpointing=True)
    found = {"divergence": diverged, "plateau": flat, "memory": memory}
    told = build_report(replace(inputs, training=inputs.training.model_copy(update=found)))
    for page in (render_markdown(told), render_html(told)):
        assert told_divergence(diverged) in page
        assert told_plateau(flat) in page
        assert "it ran out: micro-batches cut to 256 tokens, gradient checkpointing switched on" in page
