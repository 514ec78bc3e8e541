"""Reads .parquet files row by row; the only module that imports pyarrow, so import it where it is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow
from pyarrow.parquet import ParquetFile

from finetune.errors import DataError
from finetune.row_files import Record, Unreadable, check_row

_ROWS_AT_ONCE = 1024


def read_parquet(path: Path) -> Iterator[Record | Unreadable]:
    """Yield one row for each record, numbered from 1.

    Dates, times and decimals become text; NaN becomes None, since that is how pandas writes a missing number.

    Raises:
        DataError: the file is not Parquet, is damaged, or names a column twice.
    """
    number = 0
    try:
        with ParquetFile(path) as file:
            _check_columns(file.schema_arrow.names, path)
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for values in batch.to_pylist():
                    number += 1
                    yield check_row(number, _as_json(values))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise DataError(f"cannot be read as Parquet: {first_line}", where=f"{path}:{number + 1}") from error


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
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"the file names a column twice: {', '.join(repeated)}", where=str(path))
