from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from evaluation.errors import DataError, MachineError, UserError, nearest
from evaluation.files import (
    STAGING_PREFIX,
    read_jsonl_lines,
    sha256_of_file,
    sha256_of_folder,
    sha256_of_json,
    staged_file,
    staged_folder,
    sweep_staging,
    write_jsonl,
    write_model,
    write_text,
)


class Pair(BaseModel):
    a: int
    b: str


class Interrupted(Exception):
    """Stands for whatever stops a writer."""


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(f"{STAGING_PREFIX}*")]


def test_file_is_absent_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with staged_file(path) as staging:
        staging.write_text("whole")
        assert not path.exists()
        assert staging.parent == path.parent  # a rename is atomic within one file system only
    assert path.read_text() == "whole"
    assert not leftovers(tmp_path)


def test_file_keeps_its_old_content_when_the_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(Interrupted), staged_file(path) as staging:  # noqa: PT012
        staging.write_text("half")
        assert path.read_text() == "old"
        raise Interrupted
    assert path.read_text() == "old"
    assert not leftovers(tmp_path)


def test_folder_is_absent_until_it_is_whole_and_replaces_all_of_the_old(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for content in ({"a": "1", "b/c": "2"}, {"d": "3"}):
        with staged_folder(folder) as staging:
            assert list(staging.iterdir()) == []
            for name, text in content.items():
                (staging / name).parent.mkdir(exist_ok=True)
                (staging / name).write_text(text)
        found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
        assert found == content
        assert not leftovers(tmp_path)


def test_folder_keeps_its_old_content_when_the_writer_fails(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a").write_text("old")
    before = sha256_of_folder(folder)
    with pytest.raises(Interrupted), staged_folder(folder) as staging:  # noqa: PT012
        (staging / "a").write_text("new")
        assert sha256_of_folder(folder) == before
        raise Interrupted
    assert sha256_of_folder(folder) == before
    assert not leftovers(tmp_path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what is synced and renamed, in order."""
    noted: list[str] = []
    opened: dict[int, str] = {}
    plain, sync, rename = os.open, os.fsync, Path.rename

    def opening(path: Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        descriptor = plain(path, flags, mode, dir_fd=dir_fd)
        opened[descriptor] = Path(path).name.rpartition("-")[2]
        return descriptor

    def syncing(descriptor: int) -> None:
        noted.append(f"sync {opened[descriptor]}")
        sync(descriptor)

    def renaming(self: Path, target: Path) -> Path:
        noted.append(f"rename to {target.name.rpartition('-')[2]}")
        return rename(self, target)

    monkeypatch.setattr("evaluation.files.os.open", opening)
    monkeypatch.setattr("evaluation.files.os.fsync", syncing)
    monkeypatch.setattr(Path, "replace", renaming)
    monkeypatch.setattr(Path, "rename", renaming)
    return noted


def opened_files() -> int:
    """Count what this process has open, where the system tells."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) if sys.platform == "linux" else 0


def test_everything_is_synced_before_it_gets_its_name_and_the_name_after(tmp_path: Path, calls: list[str]) -> None:
    place = tmp_path / "place"
    before = opened_files()
    write_text(place / "file", "x")
    assert calls == ["sync file", "rename to file", "sync place"]
    calls.clear()
    for _ in range(2):
        with staged_folder(place / "folder") as staging:
            (staging / "below").mkdir()
            (staging / "below" / "one").touch()
            (staging / "two").touch()
    synced = ["sync below", "sync one", "sync two", "sync folder"]
    replaced = ["rename to folder", "rename to folder", "sync place"]
    assert calls == [*synced, "rename to folder", "sync place", *synced, *replaced]
    assert leftovers(place) == []
    assert opened_files() == before


def test_a_folder_is_made_below_one_that_is_not_there(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "a" / "b") as staging:
        (staging / "one").touch()
    assert (tmp_path / "a" / "b" / "one").exists()


def test_where_a_name_is_given_only_what_was_to_be_called_so_is_swept(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{STAGING_PREFIX}0-{name}").touch()
    sweep_staging(tmp_path, "one")
    assert leftovers(tmp_path) == [f"{STAGING_PREFIX}0-two"]


def test_sweep_removes_what_an_interrupted_writer_left_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / f"{STAGING_PREFIX}1-folder" / "deep").mkdir(parents=True)
    (tmp_path / f"{STAGING_PREFIX}2-file").write_text("half")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / f"{STAGING_PREFIX}3").write_text("not directly below")
    sweep_staging(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    assert len(leftovers(tmp_path)) == 1


def test_hash_of_a_folder_is_that_of_names_and_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "a").write_text("x")
    assert sha256_of_folder(one) == sha256_of_folder(two)
    hashes = {sha256_of_folder(one)}
    for change in (
        lambda: (two / "sub" / "a").write_text("y"),
        lambda: (two / "sub" / "a").rename(two / "sub" / "b"),
        lambda: (two / "c").write_text(""),
    ):
        change()
        hashes.add(sha256_of_folder(two))
    assert len(hashes) == 4
    assert sha256_of_file(one / "sub" / "a") == hashlib.sha256(b"x").hexdigest()


@given(value=st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.lists(st.booleans()))))
def test_hash_of_json_does_not_depend_on_the_order_of_keys(value: dict[str, int | str | list[bool]]) -> None:
    turned = dict(reversed(value.items()))
    assert sha256_of_json(value) == sha256_of_json(turned)
    assert sha256_of_json({**value, "another key": 1}) != sha256_of_json({**value, "another key": 2})


def test_lines_come_back_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [Pair(a=1, b="é\n🙂"), Pair(a=2, b="\u2028")])
    lines = list(read_jsonl_lines(path))
    assert [number for number, _ in lines] == [1, 2]
    assert [Pair.model_validate_json(line).b for _, line in lines] == ["é\n🙂", "\u2028"]
    path.write_bytes(b"\xef\xbb\xbf1\n\n  \n2")
    assert [(number, text.strip()) for number, text in read_jsonl_lines(path)] == [(1, "1"), (4, "2")]


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_jsonl_lines(tmp_path / "absent"))
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="not UTF-8"):
        list(read_jsonl_lines(tmp_path / "latin"))


def test_values_are_written_as_indented_json(tmp_path: Path) -> None:
    write_model(tmp_path / "pair.json", Pair(a=1, b="x"))
    assert (tmp_path / "pair.json").read_text() == '{\n  "a": 1,\n  "b": "x"\n}\n'
    write_text(tmp_path / "t", "ü")
    assert (tmp_path / "t").read_bytes() == "ü".encode()


def test_error_says_where_what_and_what_to_change() -> None:
    assert str(MachineError("no room", where="disk", hint="delete something")) == "disk: no room\n  → delete something"
    assert str(UserError("odd")) == "odd"
    assert nearest("lora", ["lore", "dora"]) == "did you mean 'lore'?"
    assert nearest("zzz", ["b", "a"]) == "accepted: a, b"
    assert nearest("zzz", []) == ""
