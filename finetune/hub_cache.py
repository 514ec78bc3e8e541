"""What of a snapshot in the hub's cache is not what the hub gave: told by the names that its cache goes by.

huggingface_hub keeps a file's bytes under `blobs/<etag>` and links to them from `snapshots/<commit>/<name>`. It never
looks at them again (huggingface_hub/file_download.py, 1.x: an existing link is returned). The etag of a large file is
its sha256, that of a small one git's hash of it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from evaluation.files import sha256_of_file


def forget_links(snapshot: Path) -> None:
    """Take a snapshot's links away, and the bytes behind them that are damaged: a fetch then puts all back."""
    for path in sorted(snapshot.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        blob = path.resolve()
        path.unlink()
        if blob.is_file() and not is_its_name(blob):
            blob.unlink()


def is_its_name(blob: Path) -> bool:
    """Tell whether a file's bytes have the hash that it is named by."""
    if len(blob.name) == hashlib.sha256().digest_size * 2:
        return sha256_of_file(blob) == blob.name
    digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    with blob.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest() == blob.name
