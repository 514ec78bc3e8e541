"""`finetune rows`: what stands in a row that was set aside, for every kind of file."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from report_inputs import inputs

from evaluation.files import sha256_of_file, write_jsonl, write_model
from finetune.audit_records import SetAside
from finetune.cache import default_cache, file_entry
from finetune.errors import DataError
from finetune.recipe_data import Source
from finetune.rows import BadRow, read_rows
from finetune.run_directory import RunDirectory
from finetune.set_aside import show_set_aside, source_text

WHEEL = "pypi:shelf==1.0/shelf/{}"


def unreadable_in(path: Path) -> SetAside:
    """Return the one row of a file that cannot be read, as a run sets it aside."""
    [bad] = [row for row in read_rows(Source(source=str(path), rows="text"), path) if isinstance(row, BadRow)]
    return SetAside(file=bad.file, line=bad.line, reason=bad.reason, detail=bad.detail)


def shown(row: SetAside) -> str:
    return source_text(row, {}, Path("nowhere"))


def aside(file: str | Path, line: int) -> SetAside:
    return SetAside(file=str(file), line=line, reason="empty_answer", detail="the answer is empty")


@pytest.mark.parametrize(
    ("name", "content", "line", "expected"),
    [
        ("rows.jsonl", b'{"a": "x"}\n{"a": \xff"y"}\n{"a": "z"}\n', 2, '{"a": \\xff"y"}'),
        ("ROWS.JSONL", b'{"a": "x"}\r\n[1]\r\n', 2, "[1]"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": "x"}\n\n3\n', mtime=0), 3, "3"),
        ("rows.csv", b'a,b\n1,"two\nlines"\n3,4,5\n', 4, "3,4,5"),
        ("rows.csv", b"a,b\r1,2\r3,4,5\r6,7\r", 3, "3,4,5"),
        ("rows.csv", b"\xef\xbb\xbfa,b\n1,\xff\n", 2, "1,\\xff"),
        ("rows.csv.gz", gzip.compress(b"a,b\n1,2\n3,4,5\n", mtime=0), 3, "3,4,5"),
        ("rows.tsv", b"a\tb\n1\t2\t3\n", 2, "1\t2\t3"),
        ("rows.tsv.gz", gzip.compress(b"a\tb\n1\t2\t3\n", mtime=0), 2, "1\t2\t3"),
    ],
)
def test_a_row_of_a_file_of_lines_is_shown_as_its_line(
    name: str, content: bytes, line: int, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    row = unreadable_in(path)
    assert (row.line, shown(row)) == (line, expected)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", b'[{"a": "x"}, 3, {"a": "z"}]'),
        ("rows.json", b'[\n  {\n    "a": "x"\n  },\n  3,\n  {\n    "a": "z"\n  }\n]'),
        ("rows.json.gz", gzip.compress(b'[{"a": "x"},\n3]', mtime=0)),
    ],
)
def test_a_record_of_json_is_not_looked_for_in_the_lines(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    said = "not_an_object: int instead of an object of columns; the record cannot be shown as text"
    assert shown(unreadable_in(path)) == f"{path}:2: {said}"


def test_a_record_of_parquet_is_not_looked_for_in_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"image": None}, {"image": b"\x89PNG"}]), path)
    row = unreadable_in(path)
    assert row.reason == "binary_value"
    assert shown(row) == f"{path}:2: binary_value: {row.detail}; the record cannot be shown as text"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.csv.gz", "rows.json", "rows.parquet"])
def test_a_row_that_can_be_read_is_shown_by_its_columns(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    rows = [{"a": "x", "b": ""}, {"a": "ä", "b": ""}]
    written = {
        "rows.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "rows.csv": "a,b\nx,\nä,\n".encode(),
        "rows.csv.gz": gzip.compress("a,b\nx,\nä,\n".encode(), mtime=0),
        "rows.json": json.dumps(rows, indent=1).encode(),
    }
    if name in written:
        path.write_bytes(written[name])
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert json.loads(shown(aside(path, 3 if "csv" in name else 2))) == rows[1]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [("rows.jsonl", b'{"a": "x"}', "line"), ("rows.csv", b"a,b\n1,2\n", "line"), ("rows.json", b"[{}]", "record")],
)
def test_a_row_that_is_gone_is_said_to_be(name: str, content: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert shown(aside(path, 9)) == f"{path} has no {what} 9; it has changed since"


def test_a_file_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert shown(aside(path, 2)) == f"{path} is not a file of this disk; its rows are not shown"


# ------------------------------------------------------------------ sources that were fetched


def test_a_row_out_of_a_wheel_is_shown_where_the_cache_has_its_file(tmp_path: Path) -> None:
    written = tmp_path / "written.jsonl"
    written.write_text('{"a": "x"}\n{"a": "y"}\n', encoding="utf-8")
    sha256 = sha256_of_file(written)
    row, hashes = aside(WHEEL.format("rows.jsonl"), 2), {WHEEL.format("rows.jsonl"): sha256}
    entry = file_entry(tmp_path, sha256, "rows.jsonl")
    assert source_text(row, hashes, tmp_path) == (
        f"{row.file} was fetched, and its rows are not shown: its file is not {entry}; look below the folder that"
        " --cache named"
    )
    entry.parent.mkdir(parents=True)
    written.rename(entry)
    assert json.loads(source_text(row, hashes, tmp_path)) == {"a": "y"}
    without = source_text(row, {}, tmp_path)
    assert "its file is" in without
    assert str(tmp_path / "files" / "<sha256 in the recipe>" / "rows.jsonl") in without


def test_a_row_that_was_made_from_a_file_is_shown_as_it_was_made(tmp_path: Path) -> None:
    diag = "<diag><name>A01</name><desc>Typhoid meningitis</desc></diag>"
    section = f'<section id="A00-A09">{diag}</section>'
    path = tmp_path / "tabular.xml"
    path.write_text(f"<t><chapter><name>1</name><desc>Infections (A00-B99)</desc>{section}</chapter></t>")
    assert json.loads(shown(aside(path, 1)))["text"] == "Typhoid meningitis"


@pytest.mark.parametrize("name", ["hub:org/set", "hub:org/set/data/train-0.parquet"])
def test_of_a_data_set_of_the_hub_it_is_said_where_its_files_are(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "datasets--org--set"
    said = f"its files are below {folder}, or where --cache said"
    assert source_text(aside(name, 2), {name: "0" * 64}, tmp_path) == (
        f"{name} was fetched, and its rows are not shown: {said}"
    )


# ------------------------------------------------------------------ the command


def test_the_command_shows_each_row_of_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"one.json": b'[{"a": "x"}, 3]', "two.jsonl": b'{"a": "x"}\n[2]\n'}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    rows = [unreadable_in(tmp_path / name) for name in files]
    (tmp_path / "run" / "refused").mkdir(parents=True)
    write_jsonl(tmp_path / "run" / "refused" / "set_aside.jsonl", rows)
    show_set_aside(tmp_path / "run", None, 2, 20)
    said = capsys.readouterr().out
    assert "the record cannot be shown as text" in said
    assert "\n[2]\n" in said
    assert "2 of 2 rows set aside: not_an_object 2" in said
    with pytest.raises(DataError, match="no row was set aside as 'too_lang'"):
        show_set_aside(tmp_path / "run", "too_lang", None, 20)


def test_the_command_finds_a_file_out_of_a_wheel_by_the_audit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    name, content, audit = WHEEL.format("rows.jsonl"), b'{"a": "x"}\n', inputs().audit
    sha256 = hashlib.sha256(content).hexdigest()
    entry = file_entry(default_cache(), sha256, "rows.jsonl")
    entry.parent.mkdir(parents=True)
    entry.write_bytes(content)
    data = RunDirectory(tmp_path / "run").data
    data.mkdir(parents=True)
    write_jsonl(data / "set_aside.jsonl", [aside(name, 1)])
    source = audit.sources[0].model_copy(update={"source": name, "sha256": sha256})
    write_model(data / "audit.json", audit.model_copy(update={"sources": (source,)}))
    show_set_aside(tmp_path / "run", None, 1, 20)
    assert '"a": "x"' in capsys.readouterr().out


def test_a_folder_without_a_data_stage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows were prepared"):
        show_set_aside(tmp_path, None, None, 20)
