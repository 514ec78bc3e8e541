"""Compares contenders on the same samples, and lays results and differences out as tables."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.errors import DataError
from evaluation.metrics import means, set_statistics
from evaluation.results import LOWER_IS_BETTER, METRIC_LABELS, Difference, Estimate, Result
from evaluation.runner import Scored
from evaluation.statistics import PairedDifference, difference_by_bootstrap, difference_of_means
from evaluation.table import Table


def differences(ours: Scored, theirs: Scored, seed: int) -> tuple[Difference, ...]:
    """Subtract their metrics from ours for every metric that both have, sample by sample.

    Raises:
        DataError: the two were not scored on the same samples of the same task.
    """
    _check_same_samples(ours, theirs)
    names = ours.result.identity.contender, theirs.result.identity.contender
    found = []
    our_means, their_means = means(ours.outputs), means(theirs.outputs)
    for metric in our_means:
        if metric in their_means:
            paired = difference_of_means(our_means[metric], their_means[metric])
            found.append(_difference(metric, names, paired))
    our_sets = set_statistics(ours.result.kind, ours.outputs)
    their_sets = set_statistics(theirs.result.kind, theirs.outputs)
    for metric in our_sets:
        if metric in their_sets:
            paired = difference_by_bootstrap(our_sets[metric], their_sets[metric], len(ours.outputs), seed)
            found.append(_difference(metric, names, paired))
    order = list(METRIC_LABELS)
    return tuple(sorted(found, key=lambda difference: order.index(difference.metric)))


def score_table(results: Sequence[Result]) -> Table:
    """Lay out contenders × metrics of one task: figures with 95 % intervals, and the number of samples."""
    metrics = [metric for metric in METRIC_LABELS if any(metric in result.metrics for result in results)]
    rows = []
    for result in results:
        counts = {estimate.n for estimate in result.metrics.values()}
        cells = [_estimate_cell(result.metrics.get(metric)) for metric in metrics]
        rows.append((result.identity.contender, *cells, ", ".join(str(n) for n in sorted(counts))))
    return Table(header=("contender", *metrics, "n"), rows=tuple(rows))


def difference_table(found: Sequence[Difference]) -> Table:
    """Lay out differences, one metric per row; nothing is called better whose interval contains 0."""
    rows = tuple(
        (
            METRIC_LABELS[difference.metric],
            f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]",
            "" if difference.mcnemar_p is None else f"{difference.mcnemar_p:.3g}",
            _verdict(difference),
            str(difference.n),
        )
        for difference in found
    )
    return Table(header=("metric", "difference [95 %]", "McNemar p", "verdict", "n"), rows=rows)


def _check_same_samples(ours: Scored, theirs: Scored) -> None:
    left, right = ours.result, theirs.result
    where = f"{left.identity.contender} against {right.identity.contender}, {left.task}"
    hint = "score both again on the same task file with the same --limit"
    if left.identity.task_sha256 != right.identity.task_sha256:
        raise DataError("the two were scored on different tasks or samples", where=where, hint=hint)
    if [output.sample for output in ours.outputs] != [output.sample for output in theirs.outputs]:
        raise DataError("the two have outputs of different samples", where=where, hint=hint)


def _difference(metric: str, names: tuple[str, str], paired: PairedDifference) -> Difference:
    return Difference(
        metric=metric,
        contender=names[0],
        against=names[1],
        value=paired.value,
        n=paired.n,
        low=paired.low,
        high=paired.high,
        mcnemar_p=paired.mcnemar_p,
    )


def _verdict(difference: Difference) -> str:
    if difference.low <= 0 <= difference.high:
        return "undecided"
    return "better" if (difference.value > 0) == (difference.metric not in LOWER_IS_BETTER) else "worse"


def _estimate_cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
