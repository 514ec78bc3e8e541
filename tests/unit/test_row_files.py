"""Conservation: every row of a file is read or set aside, with its line and a reason, whatever is in it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import DataError
from finetune.parquet import read_parquet
from finetune.row_files import DEEPEST, Record, Unreadable, read_csv, read_json, read_jsonl

Reader = Callable[[Path], Iterator[Record | Unreadable]]

BAD_LINES = {
    "not_json": [b"{", b"text", b"{'a': 1}", b'{"a": 1} {"b": 2}', b'{"a": ' + b"9" * 5000 + b"}"],
    "not_an_object": [b"[1]", b"null", b'"text"', b"3"],
    "repeated_key": [b'{"a": 1, "a": 2}', b'{"b": [{"a": 1, "a": 2}]}'],
    "not_utf8": [b'{"a": "\xff"}', '{"a": "ä"}'.encode("latin-1")],
    "not_unicode": [rb'{"a": "\ud800"}', rb'{"\udfff": 1}'],
    "not_finite": [b'{"a": NaN}', b'{"a": [-Infinity]}', b'{"a": 1e999}'],
    "too_deep": [b'{"a": ' + b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1) + b"}", b"[" * 100_000],
}


def read(reader: Reader, path: Path, content: bytes) -> list[Record | Unreadable]:
    """Write a file and read it."""
    path.write_bytes(content)
    return list(reader(path))


def outcomes(rows: list[Record | Unreadable]) -> list[tuple[int, str]]:
    """Return line and reason, or 'read'."""
    return [(row.line, row.reason if isinstance(row, Unreadable) else "read") for row in rows]


@pytest.mark.parametrize(("reason", "line"), [(reason, line) for reason, lines in BAD_LINES.items() for line in lines])
def test_a_bad_line_is_set_aside_and_its_neighbours_are_read(reason: str, line: bytes, tmp_path: Path) -> None:
    rows = read(read_jsonl, tmp_path / "rows.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}')
    assert outcomes(rows) == [(1, "read"), (2, reason), (3, "read")]


def test_blank_lines_crlf_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"a": "x"}\r\n\r\n  \r\n{"a": "y"}\r\n'
    rows = read(read_jsonl, tmp_path / "rows.jsonl", content)
    assert rows == [Record(1, {"a": "x"}), Record(4, {"a": "y"})]


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b" ").replace(b"\r", b" "))))
def test_any_bytes_are_accounted_for(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(b"{}\n" + b"\n".join(lines))
        numbers = [row.line for row in read_jsonl(path)]
    expected = [1] + [number for number, line in enumerate(lines, start=2) if line.strip()]
    assert numbers == expected


@pytest.mark.parametrize("reader", [read_jsonl, read_json, read_csv])
def test_utf16_is_refused_with_the_way_out(reader: Reader, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="save it as UTF-8"):
        read(reader, tmp_path / "rows", "text,label\n".encode("utf-16"))


def test_json_rows_have_record_numbers(tmp_path: Path) -> None:
    rows = read(read_json, tmp_path / "rows.json", b'[{"a": 1}, 2, {"a": NaN}, {"b": 1, "b": 2}, {"a": {}}]')
    assert outcomes(rows) == [
        (1, "read"),
        (2, "not_an_object"),
        (3, "not_finite"),
        (4, "repeated_key"),
        (5, "read"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": 2}', ".jsonl"),
        (b'{"a": 1}', "not a list"),
        (b'[{"a": "\xff"}]', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b"[" + b"9" * 5000 + b"]", "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_a_json_file_that_is_no_list_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(read_json, tmp_path / "rows.json", content)


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_csv_is_divided_by_what_its_header_is_divided_by(sign: str, tmp_path: Path) -> None:
    content = f'\ufefftext{sign}label\r\n"a{sign} b\r\nc"{sign}x\r\n\r\nd{sign}y\r\n'.encode()
    rows = read(read_csv, tmp_path / "rows.csv", content)
    assert rows == [
        Record(2, {"text": f"a{sign} b\r\nc", "label": "x"}),
        Record(5, {"text": "d", "label": "y"}),
    ]


def test_bad_csv_rows_are_set_aside(tmp_path: Path) -> None:
    content = b'text,label\na,b\na\na,b,c\n\xff,b\n"a"x,b\na,b\n"open,b\nlost,b\n'
    rows = read(read_csv, tmp_path / "rows.csv", content)
    assert outcomes(rows) == [
        (2, "read"),
        (3, "ragged"),
        (4, "ragged"),
        (5, "not_unicode"),
        (6, "not_csv"),
        (7, "read"),
        (8, "not_csv"),
    ]
    last = rows[-1]
    assert isinstance(last, Unreadable)
    assert "lines 8 to 9" in last.detail


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no header"), (b"a,a\n1,2\n", "twice: a"), (b"\xff,a\n", "not UTF-8"), (b'"a"b,c\n', "not CSV")],
)
def test_a_header_that_names_no_columns_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read(read_csv, tmp_path / "rows.csv", content)


def test_parquet_values_become_json_values(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = [
        {
            "text": "ä",
            "score": 0.5,
            "when": date(2026, 1, 2),
            "price": Decimal("1.50"),
            "turns": [{"a": "x"}],
        },
        {"text": None, "score": float("nan"), "when": None, "price": None, "turns": []},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert list(read_parquet(path)) == [
        Record(1, {"text": "ä", "score": 0.5, "when": "2026-01-02", "price": "1.50", "turns": [{"a": "x"}]}),
        Record(2, {"text": None, "score": None, "when": None, "price": None, "turns": []}),
    ]


def test_parquet_rows_with_binary_values_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"image": b"\x89PNG"}]), path)
    assert outcomes(list(read_parquet(path))) == [(1, "binary_value")]


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        list(read_parquet(path))


def test_parquet_columns_of_the_same_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    column = pyarrow.array(["x"])
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays([column, column], names=["a", "a"]), path)
    with pytest.raises(DataError, match="twice: a"):
        list(read_parquet(path))
