"""Collected rows on disk as Arrow, memory-mapped: what a row became, where it stood, and what splits know it by.

A source may have more rows than fit into memory, so no stage holds them all: rows are read a batch at a time, by number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

import pyarrow

from evaluation.conversation import Conversation

ROWS_A_BATCH = 1000
"""Rows that are read from the disk at once."""

_SCHEMA = pyarrow.schema(
    [
        ("file", pyarrow.string()),
        ("line", pyarrow.int64()),
        ("key", pyarrow.string()),
        ("group", pyarrow.string()),
        ("conversation", pyarrow.string()),
    ]
)


@dataclass(frozen=True)
class StoredRow:
    """A row that became a conversation."""

    file: str
    line: int
    key: str
    """Hash of its columns, as 64 hex digits: what draws go by."""
    group: str
    """What splits keep together."""
    conversation: str
    """The conversation as JSON."""

    @property
    def id(self) -> str:
        """Where the row stands."""
        return f"{self.file}:{self.line}"

    def parsed(self) -> Conversation:
        """Parse the conversation."""
        return Conversation.model_validate_json(self.conversation)


class RowStore:
    """The collected rows of one source, numbered from 0 in the order of the source."""

    def __init__(self, path: Path) -> None:
        """Memory-map a file that `write_rows` has written."""
        self._reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        counts = [self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches)]
        assert all(count == ROWS_A_BATCH for count in counts[:-1])
        self._length = sum(counts)

    def __len__(self) -> int:
        return self._length

    def rows(self, numbers: Sequence[int]) -> list[StoredRow]:
        """Read rows in the order asked for; runs of numbers from one batch are read at once."""
        found: list[StoredRow] = []
        for batch, run in groupby(numbers, key=lambda number: number // ROWS_A_BATCH):
            local = pyarrow.array([number % ROWS_A_BATCH for number in run], pyarrow.int64())
            columns = [column.to_pylist() for column in self._reader.get_batch(batch).take(local).columns]
            found += [StoredRow(*values) for values in zip(*columns, strict=True)]
        return found

    def column(self, name: Literal["key", "group"]) -> Iterator[str]:
        """Yield one column of every row."""
        for batch in range(self._reader.num_record_batches):
            yield from self._reader.get_batch(batch).column(name).to_pylist()


def write_rows(path: Path, rows: Iterable[StoredRow]) -> int:
    """Write rows as they come, a batch at a time, and return how many there were."""
    waiting: list[StoredRow] = []
    count = 0
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, _SCHEMA) as writer:
        for row in rows:
            waiting.append(row)
            count += 1
            if len(waiting) == ROWS_A_BATCH:
                writer.write_batch(_as_batch(waiting))
                waiting = []
        if waiting:
            writer.write_batch(_as_batch(waiting))
    return count


def _as_batch(rows: Sequence[StoredRow]) -> pyarrow.RecordBatch:
    return pyarrow.RecordBatch.from_pydict(
        {
            "file": [row.file for row in rows],
            "line": [row.line for row in rows],
            "key": [row.key for row in rows],
            "group": [row.group for row in rows],
            "conversation": [row.conversation for row in rows],
        },
        schema=_SCHEMA,
    )
