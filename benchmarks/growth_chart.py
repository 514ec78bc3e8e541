"""Two small line charts side by side as SVG: seconds and memory over one quantity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from finetune.report_charts import Scale

WIDTH, HEIGHT = 330, 250
LEFT, TOP, BOTTOM, RIGHT = 56, 34, 44, 16
COLOURS = ("#2a7", "#57c", "#c52")


@dataclass(frozen=True)
class Series:
    """A named line: (quantity, value), in the order of the quantity."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """A chart with its lines; both axes begin at 0."""

    title: str
    series: Sequence[Series]


def growth_chart(quantity: str, panels: Sequence[Panel]) -> str:
    """Draw panels side by side over one quantity, whose axis begins at 0 as the upright ones do."""
    width = WIDTH * len(panels)
    drawn = Markup("").join(
        Markup('<g transform="translate({} 0)">{}</g>').format(WIDTH * index, _panel(quantity, panel))
        for index, panel in enumerate(panels)
    )
    frame = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
        ' font-size="11"><rect width="{width}" height="{height}" fill="#fff"/>{drawn}</svg>\n'
    )
    return str(frame.format(width=width, height=HEIGHT, drawn=drawn))


def _panel(quantity: str, panel: Panel) -> Markup:
    points = [point for series in panel.series for point in series.points]
    at = [x for x, _ in points]
    across = Scale(0, max(at) * 1.05, LEFT, WIDTH - RIGHT)
    up = Scale(0, max(y for _, y in points) * 1.1, HEIGHT - BOTTOM, TOP)
    title = Markup('<text x="{}" y="16" font-size="13">{}</text>').format(LEFT, panel.title)
    axis = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, quantity
    )
    lines = Markup("").join(
        _series(series, across, up, colour) for series, colour in zip(panel.series, COLOURS, strict=False)
    )
    names = Markup("").join(
        Markup('<text x="{}" y="{}" fill="{}">{}</text>').format(LEFT + 8, TOP + 12 + 14 * index, colour, series.name)
        for index, (series, colour) in enumerate(zip(panel.series, COLOURS, strict=False))
        if len(panel.series) > 1
    )
    return title + axis + _grid(across, up, sorted(set(at))) + lines + names


def _grid(across: Scale, up: Scale, measured: Sequence[float]) -> Markup:
    row = Markup('<path d="M{x} {y}H{end}" stroke="#ddd"/><text x="{left}" y="{low}" text-anchor="end">{text}</text>')
    rows = [
        row.format(x=LEFT, y=up.at(tick), end=WIDTH - RIGHT, left=LEFT - 6, low=up.at(tick) + 4, text=f"{tick:,.4g}")
        for tick in up.ticks()
    ]
    column = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>')
    columns, free_from = [], 0.0
    for value in measured:
        if across.at(value) >= free_from:  # the names of near points would lie on each other
            columns.append(column.format(across.at(value), HEIGHT - BOTTOM + 16, f"{value:,.6g}"))
            free_from = across.at(value) + 34
    return Markup("").join((*rows, *columns))


def _series(series: Series, across: Scale, up: Scale, colour: str) -> Markup:
    path = "L".join(f"{across.at(x)} {up.at(y)}" for x, y in series.points)
    line = Markup('<path d="M{}" fill="none" stroke="{}" stroke-width="2"/>').format(path, colour)
    dot = Markup('<circle cx="{}" cy="{}" r="3.5" fill="{}"><title>{}</title></circle>')
    return line + Markup("").join(
        dot.format(across.at(x), up.at(y), colour, f"{x:,.6g}: {y:,.4g}") for x, y in series.points
    )
