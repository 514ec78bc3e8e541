"""Charts as SVG text: bars before and after with their intervals, and the loss curve.

Drawn by hand and not by a plotting library: the marks take their colours from the page's style sheet, so one
picture serves the light and the dark scheme, its words stay text, and the same report gives the same bytes.
`Markup.format` escapes every value that is put in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from evaluation.results import LOWER_IS_BETTER, Estimate
from finetune.report_contents import TaskReport
from finetune.report_figures import contender_label, count, interval, metric_label, metric_value, nats
from finetune.training_records import StepMetrics

WIDTH = 440
LEFT = 112
"""Room for the names of the contenders."""
RIGHT = 58
"""Room for the figures."""
ROW = 36
LOSS_LEFT = 44
LOSS_TOP = 26
LOSS_HEIGHT = 320
LOG_FROM = 10
"""Ratio of largest to smallest value from which perplexities are drawn on a logarithmic scale."""


@dataclass(frozen=True)
class Scale:
    """From a value to a position, in user units of the drawing."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return the position of a value; values outside stand at the nearer end."""
        inside = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(inside / self.low) / math.log(self.high / self.low)
        else:
            share = (inside - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self) -> tuple[float, ...]:
        """Return round values within the scale."""
        if self.logarithmic:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            powers = [10.0**power for power in range(first, last + 1)]
            return tuple(tick for tick in powers if self.low <= tick <= self.high)
        step = _round_step((self.high - self.low) / 4)
        return tuple(self.low + index * step for index in range(math.floor((self.high - self.low) / step + 1e-9) + 1))


def score_chart(task: TaskReport, metric: str) -> Markup:
    """Draw one metric of all contenders that have it: bars from 0, or dots where the scale is logarithmic."""
    found = [(row.contender, row.metrics[metric]) for row in task.contenders if metric in row.metrics]
    scale = _score_scale(metric, [estimate for _, estimate in found])
    height = 8 + ROW * len(found) + 24
    axis = _vertical_ticks(scale, height - 24)
    rows = Markup("").join(
        _score_row(contender, metric, estimate, scale, 8 + ROW * index)
        for index, (contender, estimate) in enumerate(found)
    )
    label = f"{metric_label(metric)}: " + ", ".join(
        f"{contender_label(contender)} {metric_value(metric, estimate.value)}" for contender, estimate in found
    )
    return _svg(label, height, axis + rows)


def loss_chart(steps: tuple[StepMetrics, ...], kept_step: int) -> Markup | None:
    """Draw training and validation loss over the steps; none where nothing was measured."""
    training = [(step.step, step.loss) for step in steps if step.loss is not None and math.isfinite(step.loss)]
    validation = [
        (step.step, step.validation_loss)
        for step in steps
        if step.validation_loss is not None and math.isfinite(step.validation_loss)
    ]
    points = training + validation
    if not points:
        return None
    bottom = LOSS_TOP + LOSS_HEIGHT
    across = Scale(0, max(1, *(step for step, _ in points)), LOSS_LEFT, WIDTH - 10)
    up = Scale(0, _round_up(max(loss for _, loss in points)), bottom, LOSS_TOP)
    parts = (
        _loss_axes(across, up, bottom),
        _kept(across, kept_step, bottom),
        _line("raw", training, across, up),
        _line("trend", _running_mean(training), across, up),
        _line("validation-line", validation, across, up),
        Markup("").join(_validation_point(step, loss, across, up) for step, loss in validation),
    )
    label = f"loss over {count(max(step for step, _ in points))} steps, kept step {count(kept_step)}"
    return _svg(label, bottom + 46, Markup("").join(parts))


def _svg(label: str, height: float, content: Markup) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, round(height), label, content
    )


def _score_scale(metric: str, estimates: list[Estimate]) -> Scale:
    ends = [end for e in estimates for end in (e.value, e.low, e.high) if math.isfinite(end)] or [1.0]
    positive = [end for end in ends if end > 0]
    if metric in LOWER_IS_BETTER and positive and max(positive) / min(positive) >= LOG_FROM:
        low = 10 ** math.floor(math.log10(min(positive)))
        high = 10 ** math.ceil(math.log10(max(positive)))
        return Scale(low, high, LEFT, WIDTH - RIGHT, logarithmic=True)
    return Scale(0, _round_up(max(*ends, 0.05)), LEFT, WIDTH - RIGHT)


def _score_row(contender: str, metric: str, estimate: Estimate, scale: Scale, top: float) -> Markup:
    middle = top + ROW / 2
    text = Markup(
        '<g class="{name}"><title>{label}: {value}, 95 % interval {interval}, n = {n}</title>'
        '<text class="name" x="{x}" y="{y}">{label}</text>{mark}'
        '<text class="value" x="{right}" y="{y}">{value}</text></g>'
    )
    return text.format(
        name=contender,
        label=contender_label(contender),
        value=metric_value(metric, estimate.value),
        interval=interval(metric, estimate),
        n=count(estimate.n),
        x=LEFT - 10,
        y=middle + 5,
        right=WIDTH,
        mark=_score_mark(estimate, scale, middle) if math.isfinite(estimate.value) else "",
    )


def _score_mark(estimate: Estimate, scale: Scale, middle: float) -> Markup:
    value, low, high = scale.at(estimate.value), scale.at(estimate.low), scale.at(estimate.high)
    whisker = Markup('<path class="{}" d="M{low} {y}H{high}M{low} {a}V{b}M{high} {a}V{b}"/>')
    halo, line = (
        whisker.format(name, low=low, high=high, y=middle, a=middle - 5, b=middle + 5) for name in ("halo", "whisker")
    )
    if scale.logarithmic:
        # A bar has no length where the axis has no zero.
        return line + Markup('<circle class="dot" cx="{}" cy="{}" r="5"/>').format(value, middle)
    bar = Markup('<rect class="bar" x="{}" y="{}" width="{}" height="20"/>')
    return bar.format(LEFT, middle - 10, round(max(value - LEFT, 1), 2)) + halo + line


def _vertical_ticks(scale: Scale, bottom: float) -> Markup:
    tick = Markup('<path class="grid" d="M{x} 4V{bottom}"/><text class="tick" x="{x}" y="{y}">{text}</text>')
    return Markup("").join(
        tick.format(x=scale.at(value), bottom=bottom, y=bottom + 18, text=_tick_text(value)) for value in scale.ticks()
    ) + (Markup("") if scale.logarithmic else Markup('<path class="axis" d="M{} 4V{}"/>').format(scale.at(0), bottom))


def _loss_axes(across: Scale, up: Scale, bottom: float) -> Markup:
    row = Markup('<path class="grid" d="M{x} {y}H{end}"/><text class="tick y" x="{left}" y="{low}">{text}</text>')
    column = Markup('<text class="tick" x="{}" y="{}">{}</text>')
    rows = [
        row.format(x=LOSS_LEFT, y=up.at(v), end=WIDTH - 10, left=LOSS_LEFT - 8, low=up.at(v) + 5, text=_tick_text(v))
        for v in up.ticks()
    ]
    columns = [column.format(across.at(v), bottom + 20, _tick_text(v)) for v in across.ticks() if v == int(v)]
    titles = Markup(
        '<text class="legend" x="{}" y="14">loss in nats</text><text class="legend end" x="{}" y="{}">step</text>'
    )
    return Markup("").join((*rows, *columns)) + titles.format(0, WIDTH - 10, bottom + 40)


def _kept(across: Scale, kept_step: int, bottom: float) -> Markup:
    x = across.at(kept_step)
    side = "end" if x > WIDTH / 2 else "start"
    mark = Markup(
        '<path class="kept" d="M{x} {top}V{bottom}"/>'
        '<text class="legend {side}" x="{at}" y="{y}">kept: step {step}</text>'
    )
    at = x - 7 if side == "end" else x + 7
    return mark.format(x=x, top=LOSS_TOP, bottom=bottom, side=side, at=at, y=LOSS_TOP + 14, step=count(kept_step))


def _line(name: str, points: list[tuple[int, float]], across: Scale, up: Scale) -> Markup:
    if len(points) < 2:
        return Markup("")
    path = "L".join(f"{across.at(step)} {up.at(loss)}" for step, loss in points)
    return Markup('<path class="{}" d="M{}"/>').format(name, path)


def _validation_point(step: int, loss: float, across: Scale, up: Scale) -> Markup:
    x, y = across.at(step), up.at(loss)
    return Markup('<path class="diamond" d="M{} {}l6 6l-6 6l-6 -6z"><title>step {}: {}</title></path>').format(
        x, round(y - 6, 2), count(step), nats(loss)
    )


def _running_mean(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    # A twentieth of the run: long enough to see the trend of single steps, short enough to show a jump.
    reach = max(1, len(points) // 40)
    means = []
    for index, (step, _) in enumerate(points):
        window = [loss for _, loss in points[max(0, index - reach) : index + reach + 1]]
        means.append((step, sum(window) / len(window)))
    return means


def _round_step(width: float) -> float:
    power = 10.0 ** math.floor(math.log10(width))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= width * 0.999)


def _round_up(value: float) -> float:
    step = _round_step(max(value, 1e-6) / 4)
    return math.ceil(value / step - 1e-9) * step or 1.0


def _tick_text(value: float) -> str:
    return f"{value:,.10g}"
