"""Reads .parquet files row by row; pyarrow takes a while to import, so import this where it is needed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow
from pyarrow.parquet import ParquetFile

from finetune.errors import DataError
from finetune.row_check import Record, Unreadable, check_row
from finetune.row_lines import DAMAGED

_ROWS_AT_ONCE = 1024


def read_parquet(path: Path) -> Iterator[Record | Unreadable]:
    """Yield one row for each record, numbered from 1.

    Dates, times and decimals become text; NaN becomes None, since that is how pandas writes a missing number. Where a
    row group turns out to be damaged, its rows are set aside, and reading goes on with the next.

    Raises:
        DataError: the file is not Parquet, is cut off, or names a column twice.
    """
    try:
        file = ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"cannot be read as Parquet: {_first_line(error)}", where=str(path)) from error
    with file:
        _check_columns(file.schema_arrow.names, path)
        start = 0
        for group in range(file.num_row_groups):
            yield from _read_group(file, group, start)
            start += file.metadata.row_group(group).num_rows


def _read_group(file: ParquetFile, group: int, start: int) -> Iterator[Record | Unreadable]:
    number = start
    try:
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group]):
            for values in batch.to_pylist():
                number += 1
                yield check_row(number, _as_json(values))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        last = start + file.metadata.row_group(group).num_rows
        for lost in range(number + 1, last + 1):
            yield Unreadable(lost, DAMAGED, f"row group {group}, to row {last}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _as_json(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def _check_columns(names: list[str], path: Path) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise DataError(f"the file names a column twice: {', '.join(repeated)}", where=str(path))
