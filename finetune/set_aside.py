"""`finetune rows`: the rows of a run that were set aside, each with its reason, and what stands in them."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich.markup import escape
from rich.table import Table

from evaluation.files import read_jsonl_lines
from evaluation.screen import PrintableConsole
from finetune.audit_records import Audit, SetAside
from finetune.cache import default_cache, file_entry, hub_folder, is_intact
from finetune.errors import DataError, nearest
from finetune.pypi import PYPI_PREFIX, parse_pypi_reference
from finetune.recipe_data import Source
from finetune.row_check import Unreadable
from finetune.row_lines import numbered_lines, open_rows
from finetune.rows import HUB_PREFIX, Row, read_rows
from finetune.run_directory import RunDirectory

SHOWN_CHARACTERS = 2000
"""Of a row's text."""
_FILES_OF_LINES = (".jsonl", ".csv", ".tsv")


def show_set_aside(folder: Path, reason: str | None, line: int | None, most: int) -> None:
    """Print the rows that a run set aside: all, those of one reason, or those of one line with what stands there.

    Raises:
        DataError: the run has no account of its rows, or none was set aside for this reason.
    """
    run = RunDirectory(folder)
    rows = load_set_aside(run)
    counts = Counter(row.reason for row in rows)
    if reason is not None and reason not in counts:
        raise DataError(f"no row was set aside as {reason!r}", where=str(folder), hint=nearest(reason, counts))
    chosen = [row for row in rows if reason in (None, row.reason) and line in (None, row.line)]
    console = PrintableConsole()
    if chosen:
        console.print(_table(chosen[:most]))
    if line is not None:
        hashes = _source_hashes(run)
        for row in chosen:
            console.print(source_text(row, hashes, default_cache()), markup=False, highlight=False, soft_wrap=True)
    named = ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
    console.print(f"{len(chosen[:most]):,} of {len(rows):,} rows set aside" + (f": {named}" if named else ""))


def load_set_aside(run: RunDirectory) -> list[SetAside]:
    """Read the account of a data stage: of the last that was refused, if there is one, else of the finished one.

    Raises:
        DataError: no data stage has run here.
    """
    file = _account(run) / "set_aside.jsonl"
    return [SetAside.model_validate_json(text) for _, text in read_jsonl_lines(file)]


def source_text(row: SetAside, hashes: Mapping[str, str], cache: Path) -> str:
    """Return what stands in a row: its columns, or its line where it cannot be read and its file is one of lines.

    A file out of a wheel is looked for in the cache by its source's hash; nothing is fetched.
    """
    path = _file_of(row.file, hashes, cache)
    if isinstance(path, str):
        return path
    kind = Path(path.name.lower().removesuffix(".gz")).suffix
    builder: Literal["icd10-chapters"] | None = "icd10-chapters" if kind == ".xml" else None
    rows = read_rows(Source(source=row.file, rows="text", builder=builder), path)
    found = next((one for one in rows if one.line == row.line), None)
    if isinstance(found, Row):
        return json.dumps(found.values, ensure_ascii=False, indent=2)[:SHOWN_CHARACTERS]
    if kind in _FILES_OF_LINES:
        return _line_text(path, kind, row)
    if found is not None:
        return f"{row.file}:{row.line}: {row.reason}: {row.detail}; the record cannot be shown as text"
    return f"{row.file} has no record {row.line}; it has changed since"


def _account(run: RunDirectory) -> Path:
    for folder in (run.refused, run.data):
        if (folder / "set_aside.jsonl").exists():
            return folder
    raise DataError("no rows were prepared in this folder", where=str(run.folder), hint="`finetune list runs`")


def _source_hashes(run: RunDirectory) -> dict[str, str]:
    """Return the hash of each source's content; none where the data was refused before there was an audit."""
    file = _account(run) / "audit.json"
    if not file.exists():
        return {}
    return {source.source: source.sha256 for source in Audit.model_validate_json(file.read_bytes()).sources}


def _file_of(name: str, hashes: Mapping[str, str], cache: Path) -> Path | str:
    """Return the file on this disk that rows name, or a sentence where there is none."""
    fetched = f"{name} was fetched, and its rows are not shown: "
    if name.startswith(HUB_PREFIX):
        # Rows name neither commit nor split, which the cache has such files by.
        folder = "--".join(["datasets", *name.removeprefix(HUB_PREFIX).split("/")[:2]])
        return f"{fetched}its files are below {hub_folder(cache) / folder}, or where --cache said"
    if not name.startswith(PYPI_PREFIX):
        return Path(name) if Path(name).is_file() else f"{name} is not a file of this disk; its rows are not shown"
    entry = file_entry(cache, hashes.get(name, "<sha256 in the recipe>"), parse_pypi_reference(name).file_name)
    if name not in hashes:
        return f"{fetched}its file is {entry}, or below the folder that --cache named"
    intact = is_intact(entry, hashes[name])
    return entry if intact else f"{fetched}its file is not {entry}; look below the folder that --cache named"


def _line_text(path: Path, kind: str, row: SetAside) -> str:
    """Return the line on which a row begins as it stands there; lines are counted as the reader of rows does."""
    with open_rows(path) as file:
        if kind == ".jsonl":
            lines: Iterator[tuple[int, str | bytes] | Unreadable] = numbered_lines(file, (b"\n",))
        else:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="backslashreplace", newline="")
            lines = numbered_lines(text, ("\n", "\r"))
        for line in lines:
            if isinstance(line, Unreadable):
                if line.line == row.line:
                    return line.detail
            elif line[0] == row.line:
                shown = line[1][:SHOWN_CHARACTERS]
                return (shown if isinstance(shown, str) else shown.decode("utf-8", errors="backslashreplace")).rstrip()
    return f"{row.file} has no line {row.line}; it has changed since"


def _table(rows: Sequence[SetAside]) -> Table:
    table = Table("row", "reason", "what exactly", box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(escape(f"{row.file}:{row.line}"), row.reason, escape(row.detail))
    return table
