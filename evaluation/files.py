"""Files that are either whole or absent: written beside, synced, renamed; and hashes of what they hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, JsonValue

from evaluation.errors import DataError

STAGING_PREFIX = ".staging-"
"""Name of everything that is not finished; a leftover may be removed by whoever holds the run."""


def sha256_of_file(path: Path) -> str:
    """Hash a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: JsonValue) -> str:
    """Hash a JSON value in its canonical spelling: keys sorted, no spaces, as 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of_folder(folder: Path) -> str:
    """Hash the names and contents of all files below a folder, as 64 hex digits; the folder's own name is left out."""
    return sha256_of_hashes(hashes_of_folder(folder))


def hashes_of_folder(folder: Path) -> dict[str, str]:
    """Hash every file below a folder: path relative to it, with /, → 64 hex digits; in order of the paths."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: sha256_of_file(folder / name) for name in names}


def sha256_of_hashes(hashes: Mapping[str, str]) -> str:
    """Return the hash of a folder whose files have these hashes."""
    return sha256_of_json([[name, hashes[name]] for name in sorted(hashes)])


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a name to write to; on success the file is synced and renamed to `path`, on failure removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f"{STAGING_PREFIX}{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield staging
        _sync(staging)
        staging.replace(path)
        _sync(path.parent)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on success every file is synced and it takes the place of `folder`.

    An older `folder` is moved aside first and removed last, so at no instant is a half-written one under that name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f"{STAGING_PREFIX}{uuid.uuid4().hex[:8]}-{folder.name}")
    staging.mkdir()
    try:
        yield staging
        for path in sorted(staging.rglob("*")):
            _sync(path)
        _sync(staging)
        _replace_folder(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sweep_staging(parent: Path, name: str = "") -> None:
    """Remove what an interrupted writer left directly below `parent`: of one file or folder, where it is named."""
    for leftover in parent.glob(f"{STAGING_PREFIX}*-{name}" if name else f"{STAGING_PREFIX}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all."""
    with staged_file(path) as staging:
        staging.write_text(text, encoding="utf-8")


def write_model(path: Path, value: BaseModel) -> None:
    """Write a pydantic value as indented JSON, whole or not at all."""
    write_text(path, value.model_dump_json(indent=2) + "\n")


def write_jsonl(path: Path, values: Iterable[BaseModel]) -> None:
    """Write pydantic values one JSON line each, whole or not at all."""
    with staged_file(path) as staging, staging.open("w", encoding="utf-8") as file:
        for value in values:
            file.write(value.model_dump_json() + "\n")


def read_jsonl_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) of every non-blank line of a UTF-8 file.

    Raises:
        DataError: the file is absent or not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error.reason} at byte {error.start}", where=str(path)) from error


def _replace_folder(staging: Path, folder: Path) -> None:
    aside = folder.with_name(f"{STAGING_PREFIX}{uuid.uuid4().hex[:8]}-old-{folder.name}")
    if folder.exists():
        folder.rename(aside)
    staging.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
