"""Mixing and balancing: the shares are those asked for, and what cannot have one is refused."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from finetune.errors import DataError
from finetune.mixing import balance, mix


def keys(name: str, count: int) -> list[str]:
    """Return keys of rows of a source."""
    return [f"{name}{i}" for i in range(count)]


def test_a_small_source_is_used_in_whole_rounds_and_a_large_one_is_drawn_from() -> None:
    small, large = mix([keys("a", 10), keys("b", 90)], [1.0, 3.0], None, seed=0)
    assert small[:20] == [*range(10), *range(10)]
    assert len(small) == 25
    assert set(Counter(small).values()) == {2, 3}
    assert len(large) == len(set(large)) == 75
    assert all(one < two for one, two in pairwise(large))


def test_temperature_lies_between_by_size_and_all_the_same() -> None:
    rows = [keys("a", 10), keys("b", 1000)]

    def sizes(temperature: float) -> list[int]:
        return [len(chosen) for chosen in mix(rows, None, temperature, seed=0)]

    assert sizes(1) == [10, 1000]
    assert sizes(2) == [92, 918]
    assert sizes(1e9) == [505, 505]


def test_a_source_that_cannot_have_its_share_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.train\.1\.weight: no rows"):
        mix([keys("a", 5), []], [1.0, 1.0], None, seed=0)
    with pytest.raises(DataError, match=r"data\.train\.0\.weight: its share is less than one row"):
        mix([keys("a", 5), keys("b", 5)], [0.001, 1.0], None, seed=0)


def test_a_source_without_rows_has_no_share_by_size() -> None:
    assert mix([keys("a", 3), []], None, 2.0, seed=0) == [[0, 1, 2], []]


def test_the_seed_decides_what_is_drawn() -> None:
    rows = [keys("a", 50), keys("b", 50)]
    assert mix(rows, [1.0, 3.0], None, seed=0) != mix(rows, [1.0, 3.0], None, seed=1)
    labels = ["x"] * 40 + ["y"] * 10
    assert balance(labels, rows[0], "draw", 1.0, seed=0) != balance(labels, rows[0], "draw", 1.0, seed=1)


def test_rows_with_equal_keys_are_not_drawn_together() -> None:
    # Ten rows, each twice: half of twenty drawn by key alone would be five rows twice over.
    twice = keys("a", 10) * 2
    drawn = balance(["x"] * 20 + ["y"] * 10, [*twice, *keys("b", 10)], "draw", 1.0, seed=0)
    assert len({twice[i] for i in drawn if i < 20}) > 5


def test_repeat_keeps_every_row_and_adds_the_repeats_behind() -> None:
    labels = ["x"] * 6 + ["y"] * 2 + ["z"] * 3
    chosen = balance(labels, keys("a", 11), "repeat", 2.0, seed=0)
    assert chosen[:11] == list(range(11))
    assert [labels[i] for i in chosen[11:]] == ["y"]


def test_the_ratio_is_the_one_that_is_written() -> None:
    # 100 * 1.15 is a little less than 115 in binary.
    labels = ["x"] * 100 + ["y"] * 200
    assert len(balance(labels, keys("a", 300), "draw", 1.15, seed=0)) == 215


def test_no_rows_stay_no_rows() -> None:
    assert balance([], [], "draw", 1.0, seed=0) == []
