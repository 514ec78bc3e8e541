"""Chunks of rows become examples in one or several processes, and stay in the cache.

An entry is named by the hash of everything that it depends on: the conversations, the settings, tokenizer and
template, and this code. What was made before a run was killed is found again, and a chunk that was changed on the disk
is made anew.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow

from evaluation.files import sha256_of_json, staged_file, sweep_staging, write_text
from evaluation.rendering import Example, Renderer
from finetune.cache import code_hash, examples_entry, locked, named_hash
from finetune.prepare_examples import Outcome, RenderSettings, load_renderer, render_rows
from finetune.row_store import StoredRow
from finetune.workers import bounded_chunks, map_chunks

ROWS_A_CHUNK = 2000
"""Most rows rendered at a time: a second's work, so that a kill loses little."""
CHARACTERS_A_CHUNK = 4_000_000
"""From so many on, a chunk of fewer rows is full."""

_SCHEMA = pyarrow.schema(
    [
        ("row", pyarrow.int32()),
        ("copy", pyarrow.string()),
        ("input_ids", pyarrow.list_(pyarrow.int32())),
        ("labels", pyarrow.list_(pyarrow.int32())),
        ("shortened", pyarrow.string()),
        ("reason", pyarrow.string()),
        ("detail", pyarrow.string()),
        ("tokens", pyarrow.int32()),
    ]
)


@dataclass(frozen=True)
class Rendering:
    """Where and how chunks are rendered."""

    base_folder: Path
    settings: RenderSettings
    tokenizer_sha256: str
    cache: Path
    workers: int = 1


@dataclass(frozen=True)
class Chunk:
    """Rows with what became of them."""

    rows: Sequence[StoredRow]
    outcomes: Sequence[Outcome]
    from_cache: bool


@dataclass(frozen=True)
class _Job:
    entry: Path
    base_folder: Path
    settings: RenderSettings
    rows: Sequence[StoredRow]


def render_chunks(rendering: Rendering, rows: Iterable[StoredRow], advance: Callable[[int], None]) -> Iterator[Chunk]:
    """Render a stream of rows, a chunk at a time and in order; `advance` is told how many rows were done."""
    under_way: deque[_Job] = deque()

    def jobs() -> Iterator[_Job]:
        for chunk in bounded_chunks(rows, ROWS_A_CHUNK, lambda row: row.characters, CHARACTERS_A_CHUNK):
            entry = examples_entry(rendering.cache, chunk_key(rendering, chunk))
            under_way.append(_Job(entry, rendering.base_folder, rendering.settings, chunk))
            yield under_way[-1]

    for from_cache in map_chunks(_make_chunk, jobs(), rendering.workers, _found):
        job = under_way.popleft()
        advance(len(job.rows))
        yield Chunk(job.rows, load_outcomes(job.entry), from_cache)


def chunk_key(rendering: Rendering, rows: Sequence[StoredRow]) -> str:
    """Hash everything that a chunk's examples depend on."""
    drawn_by_key = rendering.settings.augmentation is not None
    return sha256_of_json(
        {
            "code": code_hash(),
            "tokenizer": rendering.tokenizer_sha256,
            "settings": rendering.settings.as_json(),
            "rows": [[row.conversation, row.key if drawn_by_key else ""] for row in rows],
        }
    )


def renderer_hash(renderer: Renderer) -> str:
    """Hash what turns a conversation into tokens: the tokenizer with its special tokens, and the chat template."""
    tokenizer = renderer.tokenizer
    return sha256_of_json(
        [
            tokenizer.backend_tokenizer.to_str(),
            {str(name): str(token) for name, token in tokenizer.special_tokens_map.items()},
            str(tokenizer.chat_template or ""),
        ]
    )


def write_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write a chunk's outcomes as Arrow and their hash beside it; the hash last, so that it vouches for the file."""
    examples = [outcome.example for outcome in outcomes]
    columns = {
        "row": [outcome.row for outcome in outcomes],
        "copy": [outcome.copy for outcome in outcomes],
        "input_ids": _as_lists([example.input_ids if example else () for example in examples]),
        "labels": _as_lists([example.labels if example else () for example in examples]),
        "shortened": [outcome.shortened for outcome in outcomes],
        "reason": [outcome.reason for outcome in outcomes],
        "detail": [outcome.detail for outcome in outcomes],
        "tokens": [outcome.tokens for outcome in outcomes],
    }
    with staged_file(path) as staging, pyarrow.OSFile(str(staging), "wb") as file:
        table = pyarrow.table(columns, schema=_SCHEMA)
        with pyarrow.ipc.new_file(file, _SCHEMA) as writer:
            writer.write_table(table)
    write_text(_hash_file(path), named_hash(path, path.stem))


def load_outcomes(path: Path) -> list[Outcome]:
    """Read a chunk's outcomes."""
    with pyarrow.OSFile(str(path), "rb") as file:
        table = pyarrow.ipc.open_file(file).read_all().combine_chunks()
    lists = zip(_tuples(table.column("input_ids")), _tuples(table.column("labels")), strict=True)
    examples = [Example(ids, labels) if ids else None for ids, labels in lists]
    rest = [column.to_pylist() for column in table.drop_columns(["input_ids", "labels"]).columns]
    return [
        Outcome(row, copy, example, shortened, reason, detail, tokens)
        for example, row, copy, shortened, reason, detail, tokens in zip(examples, *rest, strict=True)
    ]


def is_whole(path: Path) -> bool:
    """Tell whether a chunk is there and is what was written."""
    try:
        return _hash_file(path).read_text(encoding="utf-8") == named_hash(path, path.stem)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _as_lists(values: Sequence[tuple[int, ...]]) -> pyarrow.ListArray:
    """Make a column of lists, faster than pyarrow does it from Python's objects."""
    flat = array("i")
    for value in values:
        flat += array("i", value)  # a third of the time that `extend` takes
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(np.frombuffer(flat, np.int32)))


def _tuples(column: pyarrow.ChunkedArray) -> Iterator[tuple[int, ...]]:
    """Read a column of lists; that of a row without an example is empty."""
    for chunk in column.chunks:
        offsets = chunk.offsets.to_numpy().tolist()
        flat = chunk.values.to_numpy().tolist()
        yield from (tuple(flat[start:stop]) for start, stop in pairwise(offsets))


def _found(job: _Job) -> bool | None:
    return is_whole(job.entry) or None


def _make_chunk(job: _Job) -> bool:
    outcomes = render_rows(load_renderer(job.base_folder), job.settings, job.rows)
    # Whoever holds the lock of a folder may remove what a killed writer has left there.
    with locked(job.entry.parent):
        sweep_staging(job.entry.parent)
        write_outcomes(job.entry, outcomes)
    return False


def _hash_file(path: Path) -> Path:
    return path.with_suffix(".sha256")
