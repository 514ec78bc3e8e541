"""Reads .jsonl, .json and .csv files row by row: each is read or set aside, with its line and the reason."""

from __future__ import annotations

import _csv  # for the type of csv.reader, which has no public name
import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from finetune.errors import DataError

DEEPEST = 50
"""Nesting of lists and objects in one row."""
LONGEST_FIELD = 10**7
"""Characters of one CSV field."""
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Record:
    """A row that could be read, and the line it begins on."""

    line: int
    values: dict[str, JsonValue]


@dataclass(frozen=True)
class Unreadable:
    """A row that could not be read: a short code, and what exactly, without the row's text."""

    line: int
    reason: str
    detail: str


@dataclass(frozen=True)
class _RepeatedKey:
    """Stands for an object in which a key occurs twice, until the row that holds it is set aside."""

    key: str


def read_jsonl(path: Path) -> Iterator[Record | Unreadable]:
    """Yield one row for each line that is not blank.

    Raises:
        DataError: the file is UTF-16.
    """
    _refuse_utf16(path)
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if line.strip():
                yield _parse_line(number, line)


def read_json(path: Path) -> Iterator[Record | Unreadable]:
    """Yield one row for each object of a file that holds one list; lines are record numbers, from 1.

    Raises:
        DataError: the file as a whole is not UTF-8, not JSON or not a list.
    """
    _refuse_utf16(path)
    try:
        rows = _parse_json(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at byte {error.start}", where=str(path)) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"not JSON: {error.msg}",
            where=f"{path}:{error.lineno}",
            hint="one object to a line is the .jsonl form; name such a file so",
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"not JSON that can be read: {error}", where=str(path)) from error
    if not isinstance(rows, list):
        raise DataError("not a list of rows", where=str(path), hint="accepted: [{…}, {…}]")
    for number, row in enumerate(rows, start=1):
        yield check_row(number, row)


def read_csv(path: Path) -> Iterator[Record | Unreadable]:
    """Yield one row for each record under the header; all values are text.

    Fields are divided by commas; where the header has none, by semicolons, and where it has neither, by tabs.

    Raises:
        DataError: the file is UTF-16, or its header is missing or names a column twice.
    """
    _refuse_utf16(path)
    # Bytes that are not UTF-8 become lone surrogates, which set their own row aside and not the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = file.readline()
        file.seek(0)
        delimiter = next((sign for sign in ",;\t" if sign in first), ",")
        csv.field_size_limit(LONGEST_FIELD)
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise DataError(f"the header is not CSV: {error}", where=f"{path}:1") from error
        _check_header(header, path)
        while (record := _next_record(reader, header)) is not None:
            if not (isinstance(record, Record) and not record.values):
                yield record


def check_row(line: int, row: object) -> Record | Unreadable:
    """Accept an object whose values can be hashed and rendered: finite, encodable, of bounded depth."""
    if isinstance(row, _RepeatedKey):
        return Unreadable(line, "repeated_key", f"the key {row.key!r} stands twice")
    if not isinstance(row, dict):
        return Unreadable(line, "not_an_object", f"{type(row).__name__} instead of an object of columns")
    pending: list[tuple[object, int]] = [(row, 0)]
    while pending:
        value, depth = pending.pop()
        problem = _problem_of(value, depth)
        if problem is not None:
            return Unreadable(line, *problem)
        if isinstance(value, dict):
            pending.extend((part, depth + 1) for item in value.items() for part in item)
        elif isinstance(value, list):
            pending.extend((part, depth + 1) for part in value)
    return Record(line, row)


def _problem_of(value: object, depth: int) -> tuple[str, str] | None:
    if depth > DEEPEST:
        return "too_deep", f"nested deeper than {DEEPEST} levels"
    if isinstance(value, _RepeatedKey):
        return "repeated_key", f"the key {value.key!r} stands twice"
    if isinstance(value, float) and not math.isfinite(value):
        return "not_finite", "NaN or Infinity, which JSON does not have"
    if isinstance(value, bytes):
        return "binary_value", "binary data in a column; leave it out of the file"
    if isinstance(value, str) and any("\ud800" <= sign <= "\udfff" for sign in value):
        return "not_unicode", "half of a surrogate pair, or bytes that are not UTF-8"
    return None


def _parse_line(number: int, line: bytes) -> Record | Unreadable:
    try:
        return check_row(number, _parse_json(line.decode("utf-8")))
    except UnicodeDecodeError as error:
        return Unreadable(number, "not_utf8", f"byte {error.start} of the line")
    except json.JSONDecodeError as error:
        return Unreadable(number, "not_json", f"{error.msg} at character {error.pos}")
    except RecursionError:
        return Unreadable(number, "too_deep", f"nested deeper than {DEEPEST} levels")
    except ValueError:  # Python limits the digits of an integer
        return Unreadable(number, "not_json", "a number with thousands of digits")


def _parse_json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_unrepeated)


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object] | _RepeatedKey:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    keys = [key for key, _ in pairs]
    return _RepeatedKey(next(key for key in keys if keys.count(key) > 1))


def _next_record(reader: _csv.Reader, header: list[str]) -> Record | Unreadable | None:
    """Return the next row, one without values where the line is blank, and None at the end."""
    line = reader.line_num + 1
    try:
        fields = next(reader, None)
    except csv.Error as error:
        return Unreadable(line, "not_csv", f"{error}; lines {line} to {reader.line_num} are not used")
    if fields is None:
        return None
    if fields and len(fields) != len(header):
        return Unreadable(line, "ragged", f"{len(fields)} fields under {len(header)} columns")
    return check_row(line, dict(zip(header, fields, strict=False)))


def _check_header(header: list[str], path: Path) -> None:
    if not header:
        raise DataError("no header", where=f"{path}:1", hint="the first line names the columns")
    if any("\ud800" <= sign <= "\udfff" for name in header for sign in name):
        raise DataError("the header is not UTF-8", where=f"{path}:1", hint="save the file as UTF-8")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"the header names a column twice: {', '.join(repeated)}", where=f"{path}:1")


def _refuse_utf16(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(2) in _UTF16:
            raise DataError("the file is UTF-16", where=str(path), hint="save it as UTF-8")
