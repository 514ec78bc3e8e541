"""Charts: every contender is drawn where its figure says, whatever the figure is."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from report_inputs import choose_task, inputs, loss_task, steps, with_tasks

from evaluation.results import Estimate
from finetune.report import TaskScores, build_report
from finetune.report_charts import LEFT, Scale, loss_chart, score_chart
from finetune.report_contents import TaskReport
from finetune.training_records import StepMetrics


def task_of(scores: TaskScores) -> TaskReport:
    return build_report(with_tasks(scores)).tasks[0]


def test_bars_are_as_long_as_their_figures():
    drawing = ElementTree.fromstring(score_chart(task_of(choose_task()), "exact_match"))
    widths = {group.get("class"): float(bar.get("width")) for group in drawing.iter("g") for bar in group.iter("rect")}
    assert set(widths) == {"base", "adapter", "merged", "majority", "tfidf"}
    assert widths["adapter"] / widths["majority"] == pytest.approx(0.62 / 0.25, rel=0.01)
    assert widths["base"] == 1


def test_the_interval_and_n_are_in_the_words_of_each_bar():
    chart = score_chart(task_of(choose_task()), "exact_match")
    assert "<title>TF-IDF: 0.61, 95 % interval 0.55 to 0.67, n = 300</title>" in chart


def test_contenders_without_the_metric_are_not_drawn():
    chart = score_chart(task_of(choose_task()), "perplexity")
    assert "TF-IDF" not in chart
    assert 'class="dot"' in chart  # 214 against 1.3: no zero on a logarithmic axis


def test_near_perplexities_are_bars_from_zero():
    assert 'class="bar"' in score_chart(task_of(loss_task(9.0, 3.0, 1.0)), "perplexity")


def test_figures_that_are_not_finite_are_written_and_not_drawn():
    task = task_of(loss_task(9.0, 3.0, 1.0))
    endless = Estimate(value=math.inf, n=3, stderr=None, low=math.inf, high=math.inf)
    rows = tuple(row.model_copy(update={"metrics": {"perplexity": endless}}) for row in task.contenders)
    chart = score_chart(task.model_copy(update={"contenders": rows}), "perplexity")
    assert "∞" in chart
    assert "<rect" not in chart
    assert "inf" not in re.sub(r"inf\w+", "", chart)


def test_names_are_escaped():
    task = task_of(choose_task())
    rows = tuple(row.model_copy(update={"contender": '"><script>'}) for row in task.contenders)
    chart = score_chart(task.model_copy(update={"contenders": rows}), "exact_match")
    assert "<script" not in chart
    ElementTree.fromstring(chart)


def test_the_loss_curve_shows_training_validation_and_the_kept_step():
    chart = loss_chart(steps(), 48)
    assert chart is not None
    ElementTree.fromstring(chart)
    assert chart.count('class="diamond"') == 4
    assert 'class="trend"' in chart
    assert "kept: step 48" in chart


def test_the_loss_curve_does_without_validation_or_without_anything():
    training_only = tuple(step for step in steps() if step.validation_loss is None)
    chart = loss_chart(training_only, 96)
    assert chart is not None
    assert "diamond" not in chart
    assert loss_chart((), 0) is None
    assert loss_chart((StepMetrics(step=1, loss=math.nan),), 1) is None
    assert loss_chart((StepMetrics(step=1, loss=0.0),), 1) is not None


@pytest.mark.parametrize("high", [1e-5, 0.07, 0.62, 1.0, 3.3, 47.0, 1e6])
def test_scales_have_a_few_round_ticks(high):
    ticks = Scale(0, high, 0, 100).ticks()
    assert 3 <= len(ticks) <= 6
    assert ticks[-1] <= high * 1.0001


def test_a_logarithmic_scale_has_powers_of_ten():
    scale = Scale(1, 1000, LEFT, LEFT + 300, logarithmic=True)
    assert scale.ticks() == (1, 10, 100, 1000)
    assert [scale.at(tick) - LEFT for tick in scale.ticks()] == [0, 100, 200, 300]
    assert scale.at(0.001) == LEFT


def test_a_run_without_measurements_has_a_page_without_a_curve():
    assert loss_chart(inputs().steps[:0], 0) is None
