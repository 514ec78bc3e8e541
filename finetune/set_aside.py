"""`finetune rows`: the rows of a run that were set aside, each with its reason, and what stands in them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evaluation.files import read_jsonl_lines
from finetune.errors import DataError, nearest
from finetune.recipe_data import Source
from finetune.records import SetAside
from finetune.row_check import Unreadable
from finetune.row_lines import numbered_lines, open_rows
from finetune.rows import BadRow, read_rows
from finetune.run_directory import RunDirectory

SHOWN_CHARACTERS = 2000
"""Of a row's text."""


def show_set_aside(folder: Path, reason: str | None, line: int | None, most: int) -> None:
    """Print the rows that a run set aside: all, those of one reason, or those of one line with what stands there.

    Raises:
        DataError: the run has no account of its rows, or none was set aside for this reason.
    """
    rows = load_set_aside(RunDirectory(folder))
    counts = Counter(row.reason for row in rows)
    if reason is not None and reason not in counts:
        raise DataError(f"no row was set aside as {reason!r}", where=str(folder), hint=nearest(reason, counts))
    chosen = [row for row in rows if reason in (None, row.reason) and line in (None, row.line)]
    console = Console()
    if chosen:
        console.print(_table(chosen[:most]))
    if line is not None:
        for row in chosen:
            console.print(source_text(row), markup=False, highlight=False, soft_wrap=True)
    named = ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
    console.print(f"{len(chosen[:most]):,} of {len(rows):,} rows set aside" + (f": {named}" if named else ""))


def load_set_aside(run: RunDirectory) -> list[SetAside]:
    """Read the account of a data stage: of the last that was refused, if there is one, else of the finished one.

    Raises:
        DataError: no data stage has run here.
    """
    for folder in (run.refused, run.data):
        file = folder / "set_aside.jsonl"
        if file.exists():
            return [SetAside.model_validate_json(text) for _, text in read_jsonl_lines(file)]
    raise DataError("no rows were prepared in this folder", where=str(run.folder), hint="`finetune list runs`")


def source_text(row: SetAside, sources: Sequence[SourceAccount] = ()) -> str:
    """Return what stands in a row: its columns, or its line where it cannot be read and its file has lines.

    Of the accounts of the sources, the hash of a file out of a wheel is needed, by which the cache has it.
    """
    path = Path(row.file)
    if row.file.startswith((PYPI_PREFIX, HUB_PREFIX)):
        fetched = _in_cache(row.file, sources)
        if isinstance(fetched, str):
            return f"{row.file}: rows of a fetched source are not shown; {fetched}"
        path = fetched
    if not path.is_file():
        return f"{row.file} is not a file of this disk; its row {row.line} is not shown"
    there = False
    for found in read_rows(Source(source=row.file, rows="text"), path):
        if found.line == row.line:
            if not isinstance(found, BadRow):
                return json.dumps(found.values, ensure_ascii=False, indent=2)[:SHOWN_CHARACTERS]
            there = True
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    if kind in _LINE_ENDS:
        return _line_text(path, row, _LINE_ENDS[kind])
    if there:
        return f"{row.reason}: {row.detail}; a record of {kind} that cannot be read is not shown as text"
    return f"{row.file} has no record {row.line}; it has changed since"


def _line_text(path: Path, row: SetAside, ends: tuple[bytes, ...]) -> str:
    """Return the line on which a row of a text file begins, as it stands there."""
    with open_rows(path) as file:
        for line in numbered_lines(_Lines(file) if b"\r" in ends else file, ends):
            if isinstance(line, Unreadable):
                if line.line == row.line:
                    return line.detail
            elif line[0] == row.line:
                return line[1][:SHOWN_CHARACTERS].decode("utf-8", errors="backslashreplace").rstrip()
    return f"{row.file} has no line {row.line}; it has changed since"


def _table(rows: Sequence[SetAside]) -> Table:
    table = Table("row", "reason", "what exactly", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(escape(f"{row.file}:{row.line}"), row.reason, escape(row.detail))
    return table
