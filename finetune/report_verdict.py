"""The sentence on top of a report: what the paired comparison allows to be said, and nothing more."""

from __future__ import annotations

import math

from evaluation.results import LOWER_IS_BETTER, Difference, Estimate
from finetune.report_contents import TaskReport, Verdict
from finetune.report_figures import (
    contender_label,
    count,
    difference_interval,
    interval,
    metric_difference,
    metric_label,
    metric_value,
    outcome_of,
    p_value,
)

CLASSICAL = ("tfidf", "majority")
"""Classical baselines, the stronger kind first; the verdict names the first that was scored."""


def build_verdict(tasks: tuple[TaskReport, ...]) -> Verdict:
    """Judge the adapter against the base on the first task, and remark on merge, baselines, other tasks."""
    held_out, *others = tasks
    base = held_out.estimate("base", held_out.headline)
    adapter = held_out.estimate("adapter", held_out.headline)
    if base is None or adapter is None:
        return Verdict(outcome="unknown", finding=_not_compared(base, adapter), evidence="", remarks=())
    difference = held_out.difference("adapter", held_out.headline)
    if difference is None:
        return Verdict(outcome="unknown", finding=_unpaired(held_out, base, adapter), evidence="", remarks=())
    remarks = (
        _second_metric(held_out),
        _merged(held_out, difference, "merged", "the merged model"),
        _merged(held_out, difference, "merged_nf4", "stored anew in 4 bits (NF4) it"),
        _merged(held_out, difference, "merged_int8", "stored anew in 8 bits (int8) it"),
        _classical(held_out),
        _commonest(held_out),
        *(_worse_elsewhere(task) for task in others),
    )
    return Verdict(
        outcome=outcome_of(difference),
        finding=_finding(held_out, base, adapter, difference),
        evidence=_evidence(difference),
        remarks=tuple(remark for remark in remarks if remark),
    )


def _not_compared(base: Estimate | None, adapter: Estimate | None) -> str:
    missing = [name for name, scored in (("the base", base), ("the adapter", adapter)) if scored is None]
    return f"Nothing can be said about a gain: {' and '.join(missing)} had no part in the evaluation"


def _unpaired(task: TaskReport, base: Estimate, adapter: Estimate) -> str:
    metric = task.headline
    return (
        f"The adapter reaches {metric_value(metric, adapter.value)} "
        f"(95 % interval {interval(metric, adapter)}) and the base {metric_value(metric, base.value)} "
        f"({interval(metric, base)}) on {_samples(task, adapter.n)}, by the {metric_label(metric)}; "
        "without a paired comparison this is no verdict"
    )


def _finding(task: TaskReport, base: Estimate, adapter: Estimate, difference: Difference) -> str:
    label = metric_label(task.headline)
    change = f"from {metric_value(task.headline, base.value)} to {metric_value(task.headline, adapter.value)}"
    where = f"on {_samples(task, difference.n)}"
    outcome = outcome_of(difference)
    if outcome == "level":
        return f"The adapter is not distinguishable from the base: the {label} went {change} {where}"
    raised = difference.value > 0
    if outcome == "worse":
        fell = "rose" if raised else "fell"
        return f"The adapter is worse than the base: the {label} {fell} {change} {where}"
    return f"The adapter {'raised' if raised else 'lowered'} the {label} {change} {where}"


def _evidence(difference: Difference) -> str:
    test = "" if difference.mcnemar_p is None else f", McNemar {p_value(difference.mcnemar_p)}"
    change = metric_difference(difference.metric, difference.value)
    return f"{change}, 95 % interval {difference_interval(difference)}{test}"


def _samples(task: TaskReport, n: int) -> str:
    noun = "sample" if n == 1 else "samples"
    return f"{count(n)} held-out {noun}" if task.name == "held_out" else f"{count(n)} {noun} of {task.name}"


def _second_metric(task: TaskReport) -> str:
    # Exact match also rewards having learned how answers are written; likelihood over the options does not.
    if task.kind != "choose" or task.second is None:
        return ""
    base, adapter = task.estimate("base", task.second), task.estimate("adapter", task.second)
    difference = task.difference("adapter", task.second)
    if base is None or adapter is None or difference is None:
        return ""
    figures = f"{metric_value(task.second, base.value)} to {metric_value(task.second, adapter.value)}"
    return f"the {metric_label(task.second)} went from {figures} ({_evidence(difference)})"


def _merged(task: TaskReport, gain: Difference, contender: str, name: str) -> str:
    merged = task.estimate(contender, task.headline)
    base = task.estimate("base", task.headline)
    if merged is None or base is None:
        return ""
    if outcome_of(gain) != "better":
        return f"{name} reaches {metric_value(task.headline, merged.value)}"
    kept = (merged.value - base.value) / gain.value
    if not math.isfinite(kept) or kept <= 0:
        return f"{name} keeps none of the gain"
    # Rounded down, so that "all" is never said of less.
    return f"{name} keeps {'all' if kept >= 1 else f'{math.floor(100 * kept)} %'} of the gain"


def _classical(task: TaskReport) -> str:
    for contender in CLASSICAL:
        for metric in (task.headline, task.second):
            rival = task.estimate(contender, metric) if metric else None
            adapter = task.estimate("adapter", metric) if metric else None
            if metric and rival and adapter:
                name = f"{contender_label(contender)} trained on the same rows"
                by = "" if metric == task.headline else f" by the {metric_label(metric)}"
                return _against_classical(name, metric, rival, adapter) + by
    return ""


def _commonest(task: TaskReport) -> str:
    """Say so where always giving the commonest answer would do as well: what looks like a gain may be that alone."""
    rival, adapter = task.estimate("majority", task.headline), task.estimate("adapter", task.headline)
    if rival is None or adapter is None or task.headline in LOWER_IS_BETTER or adapter.low > rival.high:
        return ""
    figures = f"{metric_value(task.headline, rival.value)} ({interval(task.headline, rival)})"
    return f"always giving the commonest answer reaches {figures}, which the adapter does not clearly beat"


def _against_classical(name: str, metric: str, rival: Estimate, adapter: Estimate) -> str:
    sign = -1 if metric in LOWER_IS_BETTER else 1
    figures = f"{metric_value(metric, rival.value)} ({interval(metric, rival)})"
    apart = rival.low > adapter.high or rival.high < adapter.low
    if sign * (rival.value - adapter.value) >= 0:
        return f"{name} {'beats the adapter' if apart else 'does no worse than the adapter'}, at {figures}"
    return f"{name} reaches {figures}" + ("" if apart else ", and the two intervals overlap")


def _worse_elsewhere(task: TaskReport) -> str:
    difference = task.difference("adapter", task.headline)
    if difference is None or outcome_of(difference) != "worse":
        return ""
    return f"it is worse than the base on {task.name} ({metric_label(task.headline)} {_evidence(difference)})"
