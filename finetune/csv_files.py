"""Reads .csv and .tsv files row by row: each is read or set aside, with its line and the reason.

A quote that is not closed spoils its own line and no other: reading goes on with the next one.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune.errors import DataError
from finetune.row_check import LONGEST_ROW, Record, Unreadable, check_row, is_unicode
from finetune.row_lines import numbered_lines, open_rows

_SIGNS = ",;\t"
_QUOTED = re.compile(r'"(?:[^"]|"")*"?')
_QUOTE_OPEN = "a quote that opens here is not closed where a field could end"
_SEPARATOR_LINE = re.compile(r"(?i)sep=(.)\r?\n?")


def read_csv(path: Path) -> Iterator[Record | Unreadable]:
    """Yield one row for each record under the header; all values are text.

    Fields are divided by what divides the header most often, of comma, semicolon and tab; or by what a first line
    `sep=;` names, as Excel writes it.

    Raises:
        DataError: the file is of another kind, or its header is missing or names a column twice.
    """
    yield from _read(path, None)


def read_tsv(path: Path) -> Iterator[Record | Unreadable]:
    """Yield one row for each record under the header; as `read_csv`, divided by tabs."""
    yield from _read(path, "\t")


def _read(path: Path, sign: str | None) -> Iterator[Record | Unreadable]:
    with open_rows(path) as raw:
        # Bytes that are not UTF-8 become lone surrogates, which set their own row aside and not the file.
        file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        lines = _Lines(numbered_lines(file, ("\n", "\r")))
        csv.field_size_limit(LONGEST_ROW)
        header, delimiter = _open(lines, sign, path)
        yield from _rows(lines, header, delimiter)


class _Lines:
    """The lines that a csv reader takes; those of the record it is in can be taken again."""

    def __init__(self, lines: Iterator[tuple[int, str] | Unreadable]) -> None:
        self._lines = lines
        self._again: deque[tuple[int, str] | Unreadable] = deque()
        self.taken: list[tuple[int, str]] = []
        """Of the record that is being read."""
        self.broken: Unreadable | None = None
        """What was met instead of a line; to the csv reader it looks like the end."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        found = self._again.popleft() if self._again else next(self._lines)
        if isinstance(found, Unreadable):
            self.broken = found
            raise StopIteration
        self.taken.append(found)
        return found[1]

    def begin(self) -> None:
        """Begin a record."""
        self.taken, self.broken = [], None

    def take_again(self, kept: int) -> None:
        """Give back all but the first lines of the record, and what was met behind them."""
        behind = [self.broken] if self.broken else []
        self._again.extendleft(reversed([*self.taken[kept:], *behind]))


def _open(lines: _Lines, sign: str | None, path: Path) -> tuple[list[str], str]:
    """Read the header, and find out what divides the fields."""
    lines.begin()
    first = next(lines, "")
    if lines.broken is not None:
        raise DataError(f"the header cannot be read: {lines.broken.detail}", where=f"{path}:{lines.broken.line}")
    named = _SEPARATOR_LINE.fullmatch(first) if sign is None else None
    if named is None:
        lines.take_again(0)
    delimiter = named[1] if named else sign or _sign_of(first)
    lines.begin()
    try:
        header = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise DataError(f"the header is not CSV: {error}", where=f"{path}:1") from error
    _check_header(header, path)
    return header, delimiter


def _sign_of(header: str) -> str:
    plain = _QUOTED.sub("", header)
    return max(_SIGNS, key=plain.count)


def _rows(lines: _Lines, header: Sequence[str], delimiter: str) -> Iterator[Record | Unreadable]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    sign = re.escape(delimiter)
    quoted = re.compile(rf'(?:\A|(?<={sign}))"(?:[^"]|"")*"(?={sign}|[\r\n]|\Z)')
    spoilt = 0
    """Line of the last broken quote, until a row is read again: what follows it may be the inside of its field."""
    while True:
        lines.begin()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            spoilt = lines.taken[0][0]
            yield Unreadable(spoilt, "not_csv", _QUOTE_OPEN if len(lines.taken) > 1 else str(error))
            lines.take_again(1)
            continue
        if fields is None and lines.broken is None:
            return
        found = lines.broken if fields is None else _row(lines, fields, header)
        if spoilt and '"' in quoted.sub("", "".join(text for _, text in lines.taken)):
            found = Unreadable(
                lines.taken[0][0], "not_csv", f"a quote within a field, below the broken one of {spoilt}"
            )
            lines.take_again(1)
        if found is not None:
            spoilt = 0 if isinstance(found, Record) else spoilt
            yield found


def _row(lines: _Lines, fields: Sequence[str], header: Sequence[str]) -> Record | Unreadable | None:
    """Return the row, or nothing where the line is blank."""
    if not fields:
        return None
    first, last = lines.taken[0][0], lines.taken[-1][0]
    if len(fields) != len(header):
        through = f"; lines {first} to {last}" if last > first else ""
        return Unreadable(first, "ragged", f"{len(fields)} fields under {len(header)} columns{through}")
    return check_row(first, dict(zip(header, fields, strict=True)))


def _check_header(header: Sequence[str], path: Path) -> None:
    if not header:
        raise DataError("no header", where=f"{path}:1", hint="the first line names the columns")
    if not all(is_unicode(name) for name in header):
        raise DataError("the header is not UTF-8", where=f"{path}:1", hint="save the file as UTF-8")
    repeated = sorted(name for name, count in Counter(header).items() if count > 1)
    if repeated:
        raise DataError(f"the header names a column twice: {', '.join(repeated)}", where=f"{path}:1")
