"""What of the hub's cache is damaged is told by its name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from finetune.hub_cache import forget_links, is_its_name

HELLO = "ce013625030ba8dba906f756967f9e9ca394464a"
"""`echo hello | git hash-object --stdin`."""
LARGE = bytes(3 * 2**20) + b"x"


@pytest.mark.parametrize("content", [b"hello\n", b"", LARGE])
@pytest.mark.parametrize("kind", ["sha256", "git"])
def test_a_file_is_its_name_as_long_as_no_byte_is_another(content: bytes, kind: str, tmp_path: Path) -> None:
    header = b"blob %d\0" % len(content) if kind == "git" else b""
    blob = tmp_path / hashlib.new("sha1" if kind == "git" else "sha256", header + content).hexdigest()
    blob.write_bytes(content)
    assert is_its_name(blob)
    blob.write_bytes(content + b"x")
    assert not is_its_name(blob)
    blob.write_bytes(bytes([*content[:-1], 1]))
    assert not is_its_name(blob)


def test_it_is_gits_hash(tmp_path: Path) -> None:
    (tmp_path / HELLO).write_bytes(b"hello\n")
    assert is_its_name(tmp_path / HELLO)


def test_links_go_and_of_what_is_behind_them_the_damaged(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "commit"
    (blobs / "folder").mkdir(parents=True)
    (snapshot / "below").mkdir(parents=True)
    (blobs / HELLO).write_bytes(b"hello\n")
    damaged = HELLO.replace("c", "d")
    (blobs / damaged).write_bytes(b"hello\n")
    links = {"good": HELLO, "below/damaged": damaged, "dangling": "nobody", "folder": "folder"}
    for name, blob in links.items():
        (snapshot / name).symlink_to(blobs / blob)
    (snapshot / "no link").write_text("where links fail")
    forget_links(snapshot)
    assert sorted(path.name for path in snapshot.rglob("*")) == ["below"]
    assert sorted(path.name for path in blobs.iterdir()) == [HELLO, "folder"]
