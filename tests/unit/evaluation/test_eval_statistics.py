from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from evaluation.statistics import (
    difference_by_bootstrap,
    difference_of_means,
    estimate_by_bootstrap,
    estimate_mean,
    macro_f1,
    perplexity,
)

bits = st.sampled_from([0.0, 1.0])
units = st.floats(0, 1)
scores = st.one_of(st.lists(bits, min_size=1, max_size=60), st.lists(units, min_size=1, max_size=60))
pairs = st.one_of(
    st.lists(st.tuples(bits, bits), min_size=1, max_size=60),
    st.lists(st.tuples(units, units), min_size=1, max_size=60),
)
labels = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcx")), min_size=1, max_size=30)
losses = st.lists(st.tuples(st.floats(0.01, 50), st.integers(1, 20)), min_size=1, max_size=20)


@given(scores)
def test_interval_of_a_mean_contains_it(values: list[float]) -> None:
    estimate = estimate_mean(values)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.value == pytest.approx(sum(values) / len(values))
    assert estimate.n == len(values)


def test_binary_interval_is_wilson_s() -> None:
    estimate = estimate_mean([1.0] * 7 + [0.0] * 3)
    expected = binomtest(7, 10).proportion_ci(method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    assert estimate.stderr == pytest.approx(math.sqrt(0.7 * 0.3 / 9))


def test_other_interval_is_student_s() -> None:
    estimate = estimate_mean([0.2, 0.4, 0.6])
    # The 0.975 quantile of Student's t with 2 degrees of freedom.
    assert estimate.high - estimate.value == pytest.approx(4.3026527 * 0.2 / math.sqrt(3))


def test_without_spread_the_interval_stays_open() -> None:
    assert estimate_mean([1.0] * 5).low == pytest.approx(0.5655, abs=1e-4)
    constant = estimate_mean([0.5] * 5)
    assert constant.low < 0.5 < constant.high
    alone = estimate_mean([0.5])
    assert alone.stderr is None
    assert alone.low < 0.1


def test_scores_outside_the_unit_are_our_mistake() -> None:
    for values in ([1.5], [], [float("nan")]):
        with pytest.raises(AssertionError):
            estimate_mean(values)


@given(pairs)
def test_differences_are_antisymmetric(values: list[tuple[float, float]]) -> None:
    ours, theirs = [left for left, _ in values], [right for _, right in values]
    there, back = difference_of_means(ours, theirs), difference_of_means(theirs, ours)
    assert there.value == pytest.approx(-back.value)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.mcnemar_p == back.mcnemar_p
    assert there.low <= there.value <= there.high


@given(scores)
def test_a_contender_does_not_differ_from_itself(values: list[float]) -> None:
    same = difference_of_means(values, values)
    assert same.value == 0
    assert same.low <= 0 <= same.high
    assert same.mcnemar_p in (None, 1.0)


def test_mcnemar_counts_discordant_pairs() -> None:
    ours, theirs = [1.0] * 8 + [0.0] + [1.0] * 9, [0.0] * 8 + [1.0] + [1.0] * 9
    found = difference_of_means(ours, theirs)
    assert found.mcnemar_p == pytest.approx(2 * (1 + 9) / 2**9)
    assert found.value == pytest.approx(7 / 18)


def test_differences_of_one_sample_and_without_spread() -> None:
    alone = difference_of_means([0.7], [0.2])
    assert (alone.low, alone.high) == (-1, 1)
    constant = difference_of_means([0.75, 0.5], [0.5, 0.25])
    assert (constant.low, constant.high) == (0.25, 0.25)


def test_a_lopsided_pairing_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        difference_of_means([0.1, 0.2], [0.1])


@given(labels)
def test_macro_f1_is_scikit_learn_s(values: list[tuple[str, str]]) -> None:
    truth, guess = [right for right, _ in values], [said for _, said in values]
    expected = f1_score(truth, guess, labels=sorted(set(truth)), average="macro", zero_division=0)
    assert macro_f1(truth, guess)(np.arange(len(values))) == pytest.approx(expected)


def test_perplexity_weighs_tokens() -> None:
    assert perplexity([1.0, 9.0], [1, 4])(np.arange(2)) == pytest.approx(math.exp(2))


@settings(max_examples=10, deadline=None)
@given(labels, losses)
def test_bootstrap_interval_contains_the_figure_and_repeats(
    classes: list[tuple[str, str]], measured: list[tuple[float, int]]
) -> None:
    f1 = macro_f1([right for right, _ in classes], [said for _, said in classes])
    ppl = perplexity([nll for nll, _ in measured], [tokens for _, tokens in measured])
    for statistic, n in ((f1, len(classes)), (ppl, len(measured))):
        estimate = estimate_by_bootstrap(statistic, n, seed=3)
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate == estimate_by_bootstrap(statistic, n, seed=3)
        assert (estimate.stderr is None) == (n == 1)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), *[st.sampled_from("abc")] * 2), min_size=1, max_size=20))
def test_bootstrap_differences_are_antisymmetric(rows: list[tuple[str, str, str]]) -> None:
    truth = [row[0] for row in rows]
    ours, theirs = (macro_f1(truth, [row[column] for row in rows]) for column in (1, 2))
    there, back = (difference_by_bootstrap(*two, len(rows), 0) for two in ((ours, theirs), (theirs, ours)))
    assert there.value == -back.value
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    same = difference_by_bootstrap(ours, ours, len(rows), 0)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_another_seed_is_another_interval() -> None:
    statistic = perplexity([float(i % 7) for i in range(40)], [1 + i % 3 for i in range(40)])
    first, second = (estimate_by_bootstrap(statistic, 40, seed) for seed in (0, 1))
    assert first.low != second.low
    assert first.low == pytest.approx(second.low, rel=0.1)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_intervals_cover_the_truth_about_95_times_in_100(share: float) -> None:
    generator = np.random.default_rng(11)
    covered = paired = 0
    for _ in range(400):
        ours = (generator.random(60) < share).astype(float).tolist()
        theirs = (generator.random(60) < 0.4).astype(float).tolist()
        estimate, found = estimate_mean(ours), difference_of_means(ours, theirs)
        covered += estimate.low <= share <= estimate.high
        paired += found.low <= share - 0.4 <= found.high
    assert 0.92 <= covered / 400 <= 0.985
    assert 0.92 <= paired / 400 <= 0.985


def test_t_intervals_cover_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(12)
    covered = 0
    for _ in range(400):
        estimate = estimate_mean(generator.beta(2, 3, 30).tolist())
        covered += estimate.low <= 0.4 <= estimate.high
    assert 0.92 <= covered / 400 <= 0.98
