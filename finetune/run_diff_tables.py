"""`finetune diff` for a terminal: one table for each part in which two runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import JsonValue
from rich.markup import escape
from rich.table import Table

from evaluation.results import LOWER_IS_BETTER, Difference, Estimate
from finetune.run_diff import Line, RunDiff, ScoreLine

SHOWN_CHARACTERS = 48
"""Of a value; `--json` has all of it. The first digits tell two hashes apart."""


def tables(found: RunDiff) -> Iterator[Table]:
    """Lay two runs out beside each other, part by part."""
    titles = {"recipe": found.recipe, "what went in and where it ran": found.lock, "rows": found.rows}
    for title, lines in titles.items():
        yield _table(title if lines else f"{title}: the same", found, lines)
    for title, lines, same in (
        ("training", found.training, _alike("adapter", found.same_adapter)),
        ("merge", found.merge, _alike("merged model", found.same_merged)),
    ):
        if lines:
            yield _table(f"{title}: {same}", found, lines)
    for task in dict.fromkeys(line.task for line in found.scores):
        yield _score_table(task, found, [line for line in found.scores if line.task == task])


def _alike(what: str, same: bool | None) -> str:
    if same is None:
        return f"one has no {what} yet"
    return f"the same {what}, bit by bit" if same else f"another {what}"


def _empty(*header: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in header:
        table.add_column(escape(column), overflow="fold")
    return table


def _table(title: str, found: RunDiff, lines: Sequence[Line]) -> Table:
    if not lines:
        return _empty(title)
    table = _empty(title, found.one, found.other)
    for line in lines:
        cells = [escape(cell) for cell in (line.key, _shown(line.one), _shown(line.other))]
        table.add_row(*cells, style=None if line.differs else "dim")
    return table


def _score_table(task: str, found: RunDiff, lines: Sequence[ScoreLine]) -> Table:
    table = _empty(f"scores on {task}", found.one, found.other, "difference, paired [95 %]", "")
    for contender in dict.fromkeys(line.contender for line in lines):
        own = [line for line in lines if line.contender == contender]
        table.add_row(escape(contender), "", "", "all answers the same" if own[0].same_outputs else "", style="bold")
        for line in own:
            if not line.same_outputs:
                cells = (_estimate(line.one), _estimate(line.other), *_difference(line))
                table.add_row(f"  {escape(line.metric)}", *(escape(cell) for cell in cells))
    return table


def _shown(value: JsonValue) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}] n={estimate.n}"


def _difference(line: ScoreLine) -> tuple[str, str]:
    found = line.difference
    if found is None:
        return ("", "") if line.one is None or line.other is None else ("not the same samples", "")
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]", _verdict(found)


def _verdict(difference: Difference) -> str:
    if difference.low <= 0 <= difference.high:
        return "undecided"
    return "better" if (difference.value > 0) == (difference.metric not in LOWER_IS_BETTER) else "worse"
