"""Folders at an address that fsspec understands (s3, gcs, sftp, …): written so that a half is never taken for a whole.

Such places rename nothing at once. So all files go to a name of their own first; then the mark, publish.json, is
removed, the files are moved to where they belong, and the mark is written last. Who finds no mark, or files other than
those that it names, has found nothing; and a push that was cut goes on with what is there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from evaluation.files import STAGING_PREFIX, sha256_of_file
from finetune.console import Reporter
from finetune.errors import DataError, MachineError, nearest
from finetune.publish_manifest import MANIFEST_FILE, Manifest, PublishedFile, parse_manifest
from finetune.push_targets import is_safe_name

CHUNK_BYTES = 2**20
_FAILURES = (OSError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Store:
    """A folder at an address."""

    url: str
    files: Any
    """fsspec's file system: untyped."""
    root: str

    def exists(self, name: str) -> bool:
        """Tell whether there is such a file."""
        return bool(self.files.exists(f"{self.root}/{name}"))

    def holds(self, name: str, file: PublishedFile) -> bool:
        """Tell whether there is a file with these bytes; they are read."""
        path = f"{self.root}/{name}"
        if not self.files.exists(path) or self.files.size(path) != file.bytes:
            return False
        digest = hashlib.sha256()
        with self.files.open(path, "rb") as opened:
            while chunk := opened.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest() == file.sha256

    def names(self) -> list[str]:
        """List every file below the folder, as a path relative to it."""
        found = self.files.find(self.root)
        return sorted(str(path)[len(self.root) :].lstrip("/") for path in found)

    def read(self, name: str) -> bytes:
        """Read a small file."""
        return bytes(self.files.cat_file(f"{self.root}/{name}"))


def open_store(url: str) -> Store:
    """Find the file system of an address.

    Raises:
        MachineError: its library is not installed.
        DataError: no such kind of address.
    """
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise MachineError(f"addresses of this kind need a library: {error}", where=url) from error
    except ValueError as error:
        scheme = url.partition(":")[0]
        raise DataError(f"{error}", where=url, hint=nearest(scheme, fsspec.available_protocols())) from error
    return Store(url, files, str(root).rstrip("/"))


def publish_to_store(folder: Path, manifest: Manifest, url: str, reporter: Reporter) -> bool:
    """Write a staged folder to an address; returns whether there was anything to do.

    Raises:
        DataError: the place holds something else.
        MachineError: it cannot be written; what is there is not taken for whole.
    """
    store = open_store(url)
    mark = PublishedFile(
        path=MANIFEST_FILE,
        bytes=(folder / MANIFEST_FILE).stat().st_size,
        sha256=sha256_of_file(folder / MANIFEST_FILE),
    )
    staging = f"{STAGING_PREFIX}{mark.sha256[:16]}"
    try:
        _refuse_other_use(store, manifest)
        if store.holds(MANIFEST_FILE, mark) and all(store.holds(file.path, file) for file in manifest.files):
            return False
        total = sum(file.bytes for file in manifest.files)
        with reporter.bar(f"upload to {url} (bytes)", total) as advance:
            for file in manifest.files:
                if not store.holds(file.path, file) and not store.holds(f"{staging}/{file.path}", file):
                    store.files.makedirs(_parent(f"{store.root}/{staging}/{file.path}"), exist_ok=True)
                    store.files.put_file(str(folder / file.path), f"{store.root}/{staging}/{file.path}")
                advance(file.bytes)
        _put_in_place(store, staging, folder, manifest)
    except _FAILURES as error:
        hint = "what was sent is not taken for whole; the same command goes on from here"
        raise MachineError(f"it cannot be written: {error}", where=url, hint=hint) from error
    return True


def fetch_from_store(url: str, folder: Path) -> None:
    """Write what an address holds into a folder: publish.json, and the files that it names.

    Raises:
        DataError: no publish.json: nothing, or an upload that was not finished; or a file that it names is missing.
        MachineError: it cannot be read.
    """
    store = open_store(url)
    try:
        if not store.exists(MANIFEST_FILE):
            hint = "nothing was published there, or a push was cut: push again"
            raise DataError(f"no {MANIFEST_FILE} in it", where=url, hint=hint)
        data = store.read(MANIFEST_FILE)
        manifest = parse_manifest(data, url)
        for file in manifest.files:
            if not is_safe_name(file.path):
                raise DataError(f"it names {file.path!r}, which is not fetched", where=url)
            target = folder / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            store.files.get_file(f"{store.root}/{file.path}", str(target))
        (folder / MANIFEST_FILE).write_bytes(data)
    except FileNotFoundError as error:
        raise DataError(f"a file that {MANIFEST_FILE} names is not there: {error}", where=url) from error
    except _FAILURES as error:
        raise MachineError(f"it cannot be read: {error}", where=url) from error


def _put_in_place(store: Store, staging: str, folder: Path, manifest: Manifest) -> None:
    """Take the mark away, move the files, remove others, and set the mark again.

    The new mark is sent before the old one goes: as long as it waits, the place is known to be ours.
    """
    below, mark = f"{store.root}/{staging}", f"{store.root}/{MANIFEST_FILE}"
    store.files.makedirs(below, exist_ok=True)
    store.files.put_file(str(folder / MANIFEST_FILE), f"{below}/{MANIFEST_FILE}")
    if store.files.exists(mark):
        store.files.rm_file(mark)
    for file in manifest.files:
        if store.files.exists(f"{below}/{file.path}"):
            store.files.makedirs(_parent(f"{store.root}/{file.path}"), exist_ok=True)
            store.files.mv(f"{below}/{file.path}", f"{store.root}/{file.path}")
    for name in set(store.names()) - {file.path for file in manifest.files} - {f"{staging}/{MANIFEST_FILE}"}:
        store.files.rm_file(f"{store.root}/{name}")
    store.files.mv(f"{below}/{MANIFEST_FILE}", mark)
    if store.files.exists(below):
        store.files.rm(below, recursive=True)


def _refuse_other_use(store: Store, manifest: Manifest) -> None:
    bucket = store.root.partition("/")[0]
    if bucket and not store.files.exists(bucket):  # s3fs would make one, of a name that was mistyped
        raise DataError(f"there is no bucket {bucket!r}", where=store.url, hint="create it first, or check the name")
    names = store.names() if store.files.exists(store.root) else []
    strange = [name for name in names if not name.startswith(STAGING_PREFIX)]
    if MANIFEST_FILE in strange:
        there = parse_manifest(store.read(MANIFEST_FILE), store.url)
        if there.name != manifest.name:
            what = f"it holds {there.name!r}, and this is {manifest.name!r}"
            raise DataError(what, where=store.url, hint="choose another place")
    elif strange and len(strange) == len(names):
        what = f"it holds {strange[0]!r} and no {MANIFEST_FILE}: it was not published from here"
        raise DataError(what, where=store.url, hint="choose an empty place")


def _parent(path: str) -> str:
    return path.rpartition("/")[0]
