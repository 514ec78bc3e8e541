"""Opens files of rows, compressed or not, and reads them a line at a time, however long a line is or wherever it ends.

A compressed file that is cut off or damaged gives the lines before the break, and then says at which line it broke.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from finetune.errors import DataError
from finetune.row_check import LONGEST_ROW, Unreadable

DAMAGED = "damaged_file"
"""Reason code of the line at which a file breaks off; what would have followed is not known."""

_Text = TypeVar("_Text", str, bytes)
_Line = TypeVar("_Line", str, bytes, covariant=True)
_SKIPPED_AT_ONCE = 1 << 20
_UTF16 = "the file is UTF-16"
# First bytes of files that are often named as what they are not.
_OTHER_KINDS = (
    (b"\xff\xfe", _UTF16, "save it as UTF-8"),
    (b"\xfe\xff", _UTF16, "save it as UTF-8"),
    (b"\x1f\x8b", "the file is compressed by gzip", "end its name in .gz, behind .jsonl, .json, .csv or .tsv"),
    (b"PK\x03\x04", "the file is a zip archive, or a workbook of Excel", "unpack it, or save the sheet as CSV"),
    (b"PAR1", "the file is Parquet", "end its name in .parquet"),
)


class _HasLines(Protocol[_Line]):
    def readline(self, size: int, /) -> _Line: ...


@contextmanager
def open_rows(path: Path) -> Iterator[io.BufferedReader | gzip.GzipFile]:
    """Open a file for reading, through gzip where its name ends in .gz.

    Raises:
        DataError: it is UTF-16, of a kind that its name does not say, or damaged before its first row.
    """
    with path.open("rb") as raw:
        if path.suffix.lower() != ".gz":
            file: io.BufferedReader | gzip.GzipFile = raw
        elif raw.peek(2)[:2] == b"\x1f\x8b":
            # Not behind a buffer of another kind: at a break, it would lose what was read before.
            file = gzip.GzipFile(fileobj=raw, mode="rb")
        else:
            raise DataError("the file is not gzip, as its name says", where=str(path), hint="name it without .gz")
        _refuse_other_kinds(file, path)
        yield file


def numbered_lines(file: _HasLines[_Text], ends: tuple[_Text, ...]) -> Iterator[tuple[int, _Text] | Unreadable]:
    """Yield each line with its number, from 1; one that is too long is passed over and named.

    `ends` are what a line may end with.
    """
    number = 0
    try:
        while line := file.readline(LONGEST_ROW + 1):
            number += 1
            if len(line) > LONGEST_ROW and not line.endswith(ends):
                size = len(line) + _skip_line(file, ends)
                yield Unreadable(number, "too_large", f"a line of {size:,}, at most {LONGEST_ROW:,} are read")
            else:
                yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield Unreadable(number + 1, DAMAGED, f"{_how_damaged(error)}; what stood from here on is lost")


def _skip_line(file: _HasLines[_Text], ends: tuple[_Text, ...]) -> int:
    skipped = 0
    while part := file.readline(_SKIPPED_AT_ONCE):
        skipped += len(part)
        if part.endswith(ends):
            break
    return skipped


def read_whole(file: io.BufferedReader | gzip.GzipFile, path: Path) -> bytes:
    """Read a file to its end.

    Raises:
        DataError: it is compressed, and cut off or damaged.
    """
    try:
        return file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        hint = "fetch it again; of a .jsonl.gz, the rows before the break could be used"
        raise DataError(_how_damaged(error), where=str(path), hint=hint) from error


def _how_damaged(error: Exception) -> Literal["the compressed file is cut off", "the compressed file is damaged"]:
    return "the compressed file is cut off" if isinstance(error, EOFError) else "the compressed file is damaged"


def _refuse_other_kinds(file: io.BufferedReader | gzip.GzipFile, path: Path) -> None:
    try:
        first = file.peek(4)[:4]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        # It must not be read on: a second attempt takes the break for the end.
        raise DataError(
            f"{_how_damaged(error)} before its first row", where=str(path), hint="fetch it again"
        ) from error
    for begin, what, hint in _OTHER_KINDS:
        if first.startswith(begin):
            raise DataError(what, where=str(path), hint=hint)
