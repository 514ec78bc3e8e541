"""Reads .jsonl and .json files row by row: each is read or set aside, with its line and the reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from finetune.csv_files import read_csv, read_tsv
from finetune.errors import DataError
from finetune.row_check import DEEPEST, Record, RepeatedKey, Unreadable, check_row
from finetune.row_lines import numbered_lines, open_rows, read_whole

__all__ = ["DEEPEST", "Record", "Unreadable", "check_row", "read_csv", "read_json", "read_jsonl", "read_tsv"]

_MARK = b"\xef\xbb\xbf"


def read_jsonl(path: Path) -> Iterator[Record | Unreadable]:
    """Yield one row for each line that is not blank; a file that breaks off ends with a row that says where.

    Raises:
        DataError: the file is of another kind.
    """
    with open_rows(path) as file:
        for found in numbered_lines(file, (b"\n",)):
            if isinstance(found, Unreadable):
                yield found
                continue
            number, raw = found
            line = raw.removeprefix(_MARK) if number == 1 else raw
            if not line.isspace() and line:
                yield _parse_line(number, line)


def read_json(path: Path) -> Iterator[Record | Unreadable]:
    """Yield one row for each object of a file that holds one list; lines are record numbers, from 1.

    Raises:
        DataError: the file as a whole is of another kind, damaged, not UTF-8, not JSON or not a list.
    """
    with open_rows(path) as file:
        content = read_whole(file, path)
    try:
        rows = _parse_json(content.decode("utf-8-sig"))
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


def _unrepeated(pairs: list[tuple[str, object]]) -> dict[str, object] | RepeatedKey:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    counts = Counter(key for key, _ in pairs)
    return RepeatedKey(next(key for key, count in counts.items() if count > 1))


_DECODER = json.JSONDecoder(object_pairs_hook=_unrepeated)


def _parse_json(text: str) -> object:
    return _DECODER.decode(text)
