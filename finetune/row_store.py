"""Collected rows on disk as Arrow, memory-mapped: what a row became, where it stood, and what splits know it by.

A source may have more rows than fit into memory, so no stage holds them all: a batch is read at a time, by number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow
from numpy.typing import NDArray

from evaluation.conversation import Conversation
from finetune.workers import bounded_chunks

ROWS_A_BATCH = 1000
"""Most rows that are read from the disk at once."""
CHARACTERS_A_BATCH = 2_000_000
"""From so many on, a batch of fewer rows is full: a row may have ten million."""

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

    @property
    def characters(self) -> int:
        """Its length as text."""
        return len(self.conversation)

    def parsed(self) -> Conversation:
        """Parse the conversation."""
        return Conversation.model_validate_json(self.conversation)


class RowStore:
    """The collected rows of one source, numbered from 0 in the order of the source."""

    def __init__(self, path: Path) -> None:
        """Memory-map a file that `write_rows` has written."""
        self._reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        counts: list[int] = [self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches)]
        self._starts = np.cumsum([0, *counts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, numbers: Sequence[int]) -> Iterator[StoredRow]:
        """Read rows in the order asked for; runs of numbers from one batch are read at once."""
        for batch in self._batches(numbers):
            columns = [column.to_pylist() for column in batch.columns]
            yield from (StoredRow(*values) for values in zip(*columns, strict=True))

    def keys(self, numbers: Sequence[int]) -> Iterator[str]:
        """Read the keys of rows in the order asked for, and nothing else of them."""
        for batch in self._batches(numbers, ["key"]):
            yield from batch.column("key").to_pylist()

    def column(self, name: Literal["key", "group"]) -> Iterator[str]:
        """Yield one column of every row."""
        for batch in range(self._reader.num_record_batches):
            yield from self._reader.get_batch(batch).column(name).to_pylist()

    def _batches(self, numbers: Sequence[int], columns: list[str] | None = None) -> Iterator[pyarrow.RecordBatch]:
        """Yield the rows asked for in runs from one batch each."""
        for place, local in runs_by_place(self._starts, numbers):
            batch = self._reader.get_batch(place)
            yield (batch.select(columns) if columns else batch).take(pyarrow.array(local))


def runs_by_place(starts: NDArray[np.int64], numbers: Sequence[int]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Cut numbers into runs that lie in one place each, and count those from its beginning.

    Place i has the numbers from `starts[i]` to before `starts[i + 1]`.
    """
    wanted = np.asarray(numbers, np.int64)
    places = np.searchsorted(starts, wanted, side="right") - 1
    for run in np.split(np.arange(len(wanted)), np.flatnonzero(np.diff(places)) + 1):
        if len(run):
            place = int(places[run[0]])
            yield place, wanted[run] - starts[place]


def write_rows(path: Path, rows: Iterable[StoredRow]) -> int:
    """Write rows as they come, a batch at a time, and return how many there were."""
    count = 0
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, _SCHEMA) as writer:
        for batch in bounded_chunks(rows, ROWS_A_BATCH, lambda row: row.characters, CHARACTERS_A_BATCH):
            writer.write_batch(_as_batch(batch))
            count += len(batch)
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
