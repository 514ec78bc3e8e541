"""Figures with 95 % intervals: of one contender, and of the difference of two on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from scipy.stats import t as student_t

from evaluation.results import Estimate

Indices = NDArray[np.intp]
Statistic = Callable[[Indices], float]
"""A figure of the samples with these indices (repeats allowed), where it is not a mean over samples."""

RESAMPLES = 2000
"""Bootstrap resamples: the ends of a 95 % interval are then the 50th values from either side."""

_TAILS = (0.025, 0.975)
_Z = NormalDist().inv_cdf(_TAILS[1])


@dataclass(frozen=True)
class PairedDifference:
    """One contender minus another over the same samples, with a 95 % interval."""

    value: float
    n: int
    low: float
    high: float
    mcnemar_p: float | None
    """Exact McNemar test, where every score is 0 or 1."""


def estimate_mean(scores: Sequence[float]) -> Estimate:
    """Average scores between 0 and 1: Wilson's interval if each is 0 or 1, Student's t otherwise.

    Without any spread the t interval would be a point; then Wilson's is taken too, which is on the safe side
    because no score between 0 and 1 varies more than a 0/1 score of the same mean.
    """
    values = _unit_scores(scores)
    n, mean = len(values), min(1.0, float(values.mean()))
    stderr = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    if not stderr or _all_binary(values):
        low, high = _wilson(mean, n)
    else:
        half = float(student_t.ppf(_TAILS[1], n - 1)) * stderr
        low, high = max(0.0, mean - half), min(1.0, mean + half)
    return Estimate(value=mean, n=n, stderr=stderr, low=low, high=high)


def estimate_by_bootstrap(statistic: Statistic, n: int, seed: int) -> Estimate:
    """Compute a figure of n samples with its percentile bootstrap interval and standard error.

    The interval is widened to the figure itself where resampling is biased away from it. One sample has no
    standard error, and its interval says nothing.
    """
    value = statistic(np.arange(n))
    figures = np.array([statistic(indices) for indices in _resamples(n, seed)])
    low, high = _percentiles(figures, value)
    stderr = float(figures.std(ddof=1)) if n > 1 else None
    return Estimate(value=value, n=n, stderr=stderr, low=low, high=high)


def difference_of_means(ours: Sequence[float], theirs: Sequence[float]) -> PairedDifference:
    """Average the per-sample differences of scores between 0 and 1, ours minus theirs.

    Scores of 0 and 1 get the interval of Agresti and Min (https://doi.org/10.1002/sim.2781): Wald's with half
    an observation added to each cell of the 2 × 2 table, which stays open without any discordant pair. Others
    get the paired t interval; a single sample gets all of [-1, 1], and differences without spread a point.
    """
    left, right = _unit_scores(ours), _unit_scores(theirs)
    assert len(left) == len(right), "paired scores are of the same samples"
    differences = left - right
    n, mean = len(differences), float(differences.mean())
    if _all_binary(left) and _all_binary(right):
        won, lost = int((differences > 0).sum()), int((differences < 0).sum())
        low, high = _agresti_min(won, lost, n)
        return PairedDifference(mean, n, low, high, _mcnemar(won, lost))
    if n == 1:
        return PairedDifference(mean, n, -1.0, 1.0, None)
    half = float(student_t.ppf(_TAILS[1], n - 1)) * float(differences.std(ddof=1)) / math.sqrt(n)
    return PairedDifference(mean, n, max(-1.0, mean - half), min(1.0, mean + half), None)


def difference_by_bootstrap(ours: Statistic, theirs: Statistic, n: int, seed: int) -> PairedDifference:
    """Subtract two figures of the same n samples, with the percentile interval over paired resamples."""
    everything = np.arange(n)
    value = ours(everything) - theirs(everything)
    figures = np.array([ours(indices) - theirs(indices) for indices in _resamples(n, seed)])
    low, high = _percentiles(figures, value)
    return PairedDifference(value, n, low, high, None)


def macro_f1(references: Sequence[str], predictions: Sequence[str]) -> Statistic:
    """Build the mean F1 over the classes that occur among the references of the chosen samples.

    A prediction that is no such class is a miss for its reference and opens no class of its own, so that free
    text is not punished once per spelling. Equal to scikit-learn's `f1_score(average="macro",
    labels=set(references))`.
    """
    codes = {name: code for code, name in enumerate(sorted(set(references)))}
    classes = len(codes)
    truth = np.array([codes[name] for name in references], dtype=np.intp)
    guess = np.array([codes.get(name, classes) for name in predictions], dtype=np.intp)
    assert len(truth) == len(guess), "one prediction per reference"

    def statistic(indices: Indices) -> float:
        right, said = truth[indices], guess[indices]
        support = np.bincount(right, minlength=classes)
        predicted = np.bincount(said, minlength=classes + 1)[:classes]
        hits = np.bincount(right[right == said], minlength=classes)
        present = support > 0
        return float((2 * hits[present] / (support + predicted)[present]).mean())

    return statistic


def perplexity(nlls: Sequence[float], tokens: Sequence[int]) -> Statistic:
    """Build exp(sum of nats / sum of tokens): every token weighs the same, in answers long or short."""
    loss, length = np.array(nlls, dtype=np.float64), np.array(tokens, dtype=np.int64)
    assert len(loss) == len(length), "one count of tokens per loss"
    return lambda indices: math.exp(loss[indices].sum() / length[indices].sum())


def _unit_scores(scores: Sequence[float]) -> NDArray[np.float64]:
    values = np.array(scores, dtype=np.float64)
    assert len(values) > 0, "at least one score"
    assert bool(((values >= 0) & (values <= 1)).all()), "scores lie between 0 and 1"
    return values


def _all_binary(values: NDArray[np.float64]) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _wilson(mean: float, n: int) -> tuple[float, float]:
    """Score interval of a proportion (https://doi.org/10.1080/01621459.1927.10502953)."""
    spread = _Z**2 / n
    centre = (mean + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(mean * (1 - mean) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def _agresti_min(won: int, lost: int, n: int) -> tuple[float, float]:
    size, net = n + 2, won - lost
    half = _Z * math.sqrt(won + lost + 1 - net**2 / size) / size
    return max(-1.0, net / size - half), min(1.0, net / size + half)


def _mcnemar(won: int, lost: int) -> float:
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _resamples(n: int, seed: int) -> Sequence[Indices]:
    assert n > 0, "at least one sample"
    generator = np.random.default_rng(seed)
    return [generator.integers(n, size=n) for _ in range(RESAMPLES)]


def _percentiles(figures: NDArray[np.float64], value: float) -> tuple[float, float]:
    low, high = (float(end) for end in np.quantile(figures, _TAILS))
    return min(low, value), max(high, value)
