"""The tables of a report, built once from its value and shown alike by the page and by the Markdown."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.results import Estimate
from finetune.report_contents import Answer, Outcome, Report, TaskReport
from finetune.report_figures import (
    contender_label,
    count,
    difference_interval,
    duration,
    interval,
    metric_difference,
    metric_label,
    metric_value,
    nats,
    outcome_of,
    p_value,
)

OUTCOME_LABELS: dict[Outcome, str] = {
    "better": "▲ better",
    "level": "= not distinguishable",
    "worse": "▼ worse",
    "unknown": "? no verdict",
}
"""Outcome → sign and word, so that nothing hangs on colour."""


@dataclass(frozen=True)
class Cell:
    """What stands in a table: the text, and what belongs to it in smaller type."""

    text: str
    detail: str = ""
    numeric: bool = False


@dataclass(frozen=True)
class Table:
    """A table with its first column as row headings."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One thing to unfold: its summary is read without opening it."""

    title: str
    summary: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]


def number(text: str, detail: str = "") -> Cell:
    """Return a cell that is aligned to the right."""
    return Cell(text, detail, numeric=True)


def tasks_tables(report: Report) -> tuple[Table, ...]:
    """Return the tables of scores, differences and changed samples, task by task."""
    tables: list[Table] = []
    for task in report.tasks:
        tables.append(scores_table(task))
        if task.differences:
            tables.append(differences_table(task))
        if task.changes is not None:
            tables.append(changes_table(task))
    return tuple(tables)


def scores_table(task: TaskReport) -> Table:
    """Return contenders × metrics, each figure with its 95 % interval and n."""
    metrics = _metrics(task)
    rows = tuple(
        (
            Cell(contender_label(row.contender)),
            *(_score(metric, row.metrics.get(metric)) for metric in metrics),
            number(duration(row.seconds)),
        )
        for row in task.contenders
    )
    return Table(
        title=f"Scores on {task_title(task)}",
        columns=("contender", *(metric_label(metric) for metric in metrics), "time to score"),
        rows=rows,
        note=_scores_note(metrics),
    )


def differences_table(task: TaskReport) -> Table:
    """Return the paired differences to the base, each with interval, n and McNemar test."""
    rows = tuple(
        (
            Cell(f"{contender_label(difference.contender)} − {contender_label(difference.against)}"),
            Cell(metric_label(difference.metric)),
            number(metric_difference(difference.metric, difference.value)),
            number(difference_interval(difference)),
            number(count(difference.n)),
            number("–" if difference.mcnemar_p is None else p_value(difference.mcnemar_p)),
            Cell(OUTCOME_LABELS[outcome_of(difference)]),
        )
        for difference in task.differences
    )
    columns = ("difference", "metric", "value", "95 % interval", "n", "McNemar", "reading")
    return Table(f"Paired differences on {task_title(task)}", columns, rows, note=_DIFFERENCES_NOTE)


_DIFFERENCES_NOTE = "Both contenders answered the same samples. Not distinguishable: the interval holds 0."


def changes_table(task: TaskReport) -> Table:
    """Return the two-by-two table of samples that the base and the tuned model got right or wrong."""
    changes = task.changes
    assert changes is not None
    tuned = contender_label(changes.tuned)
    total = changes.both_right + changes.gained + changes.lost + changes.both_wrong
    return Table(
        title=f"Which samples changed on {task_title(task)}",
        columns=(f"n = {count(total)}", f"{tuned} right ✓", f"{tuned} wrong ✗"),
        rows=(
            (Cell("Base right ✓"), number(count(changes.both_right)), number(count(changes.lost))),
            (Cell("Base wrong ✗"), number(count(changes.gained)), number(count(changes.both_wrong))),
        ),
        note=f"Right and wrong by the {metric_label(task.headline)}.",
    )


def validation_table(report: Report) -> Table:
    """Return the measurements of the validation loss."""
    rows = tuple(
        (
            Cell(f"step {count(step.step)}"),
            number(nats(step.validation_loss)),
            number(_kept(report, step.step)),
        )
        for step in report.steps
        if step.validation_loss is not None
    )
    examples = report.audit.validation.examples if report.audit.validation else 0
    note = f"Mean negative log-likelihood of the labelled tokens in nats, n = {count(examples)} validation rows."
    return Table("Validation loss", ("measured at", "loss", ""), rows, note)


def task_title(task: TaskReport) -> str:
    """Return how a task is called in headings."""
    return "the held-out samples" if task.name == "held_out" else task.name


def answer_mark(answer: Answer, headline: str) -> str:
    """Return the sign and word beside an answer: right, wrong, or its score."""
    if answer.right is not None:
        return "✓ right" if answer.right else "✗ wrong"
    if answer.score is None:
        return ""
    if headline == "perplexity":
        return f"{nats(answer.score)} nats per token"
    return f"{metric_label(headline)} {metric_value(headline, answer.score)}"


def answer_text(answer: Answer) -> str:
    """Return the answer, or in brackets why there is nothing to show."""
    if answer.text is None:
        return "(only the loss was measured)"
    return answer.text or "(nothing)"


def _kept(report: Report, step: int) -> str:
    return "kept" if step == report.training.kept_step else ""


def _metrics(task: TaskReport) -> tuple[str, ...]:
    present = dict.fromkeys(metric for row in task.contenders for metric in row.metrics)
    first = [metric for metric in (task.headline, task.second) if metric in present]
    return tuple(dict.fromkeys((*(metric for metric in first if metric), *present)))


def _score(metric: str, estimate: Estimate | None) -> Cell:
    if estimate is None:
        return number("–")
    return number(metric_value(metric, estimate.value), f"{interval(metric, estimate)}, n {count(estimate.n)}")


def _scores_note(metrics: tuple[str, ...]) -> str:
    lower = " Lower is better for perplexity." if "perplexity" in metrics else ""
    return f"Below each figure: 95 % interval and number of samples n. –: not measured.{lower}"


def facts_table(title: str, facts: dict[str, str]) -> Table:
    """Lay out named facts."""
    return Table(title, ("", ""), tuple((Cell(name), Cell(fact)) for name, fact in facts.items()))
