"""The measurement itself, on the smallest base and whatever machine there is: that it runs, and what it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.plan_gpu import (
    BASES,
    CONFIGURATIONS,
    HEADER,
    STEPS,
    Configuration,
    examples_of,
    line,
    measure,
)
from benchmarks.random_base import write_base

TINY = [asked for asked in CONFIGURATIONS if asked.base == "tiny"]


@pytest.mark.parametrize("asked", TINY, ids=str)
def test_a_configuration_is_predicted_and_trained(tmp_path: Path, asked: Configuration) -> None:
    write_base(tmp_path / "base-tiny", BASES["tiny"])
    result = measure(tmp_path / "run", asked)
    assert result.predicted == sum(result.terms.values())
    assert result.allocated > 0
    assert result.tokens_per_second > 0
    assert result.tokens_per_micro_batch is None
    assert line(result).count("|") == HEADER.splitlines()[0].count("|")


@pytest.mark.parametrize("asked", CONFIGURATIONS, ids=str)
def test_every_configuration_has_the_steps_that_are_measured(asked: Configuration) -> None:
    lengths = [len(example.input_ids) for example in examples_of(asked)]
    assert max(lengths) == asked.length
    assert asked.length <= asked.micro_batch <= asked.step
    assert (STEPS - 1) * asked.step < sum(lengths) <= STEPS * asked.step
