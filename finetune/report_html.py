"""The report as one page that needs nothing else: style and charts are inside, nothing is fetched or run."""

from __future__ import annotations

import re
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from finetune.report_charts import loss_chart, score_chart
from finetune.report_contents import Report
from finetune.report_figures import contender_label, count, legible, metric_label
from finetune.report_sections import folded_sections, mask_sentence
from finetune.report_tables import OUTCOME_LABELS, answer_mark, answer_text, tasks_tables

SHOWN_SPAN = 4000
"""Characters shown of one piece of a training example."""


def render_html(report: Report) -> str:
    """Render the page; everything that is put in is escaped, since rows and answers may hold anything."""
    environment = Environment(
        loader=FunctionLoader(_package_text), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(tidy=_tidy, break_at_commas=_break_at_commas)
    task = report.tasks[0]
    return environment.get_template("report.html.jinja").render(
        report=report,
        style=Markup(_package_text("report.css")),
        outcome=OUTCOME_LABELS[report.verdict.outcome],
        charts=[
            (metric, score_chart(task, metric), _smallest_n(report, metric))
            for metric in (task.headline, task.second)
            if metric and any(metric in row.metrics for row in task.contenders)
        ],
        loss_chart=loss_chart(report.steps, report.training.kept_step),
        tables=tasks_tables(report),
        sections=folded_sections(report),
        mask_sentence=mask_sentence(report),
        answer_mark=answer_mark,
        answer_text=answer_text,
        metric_label=metric_label,
        contender_label=contender_label,
        count=count,
        legible=lambda text: legible(text, SHOWN_SPAN),
    )


def _tidy(text: str) -> str:
    # A line that ends in "95" or "p <" is read twice.
    for part in (" %", " = ", " < "):
        text = text.replace(part, part.replace(" ", "\u00a0"))
    return text


def _break_at_commas(text: str) -> str:
    return re.sub(r"(?<!,) ", "\u00a0", text)


def _package_text(name: str) -> str:
    return files("finetune").joinpath(name).read_text(encoding="utf-8")


def _smallest_n(report: Report, metric: str) -> str:
    numbers = {row.metrics[metric].n for row in report.tasks[0].contenders if metric in row.metrics}
    low, high = min(numbers), max(numbers)
    return count(low) if low == high else f"{count(low)} to {count(high)}"
