"""Conservation: every row of a file is read or set aside, with its line and a reason, whatever is in it."""

from __future__ import annotations

import csv
import gzip
import json
import tempfile
import tracemalloc
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
from finetune.row_check import LONGEST_ROW
from finetune.row_files import DEEPEST, Record, Unreadable, read_csv, read_json, read_jsonl, read_tsv

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


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("reader", [read_jsonl, read_csv])
def test_a_line_that_is_too_long_is_never_held_as_a_whole(reader: Reader, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    short = b'{"a": 1}\n'
    with gzip.open(path, "wb", compresslevel=1) if suffix else path.open("wb") as file:
        file.write(short * 2)
        for _ in range(50):
            file.write(bytes(10**6))
        file.write(b"\n" + short)
    tracemalloc.start()
    try:
        found = outcomes(list(reader(path)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    first = [(1, "read")] if reader is read_jsonl else []
    assert found == [*first, (2, "read"), (3, "too_large"), (4, "read")]
    assert peak < 60_000_000


def test_a_row_of_many_long_values_is_too_large(tmp_path: Path) -> None:
    part = "a" * (LONGEST_ROW // 2)
    rows = read(read_json, tmp_path / "rows.json", json.dumps([{"a": part, "b": part + "b"}, {"a": part}]).encode())
    assert outcomes(rows) == [(1, "too_large"), (2, "read")]


@pytest.mark.parametrize("reader", [read_jsonl, read_csv])
def test_a_compressed_file_is_read_to_where_it_is_cut_off(reader: Reader, tmp_path: Path) -> None:
    lines = [f'{{"a": "{number * 7919 % 10007}"}}'.encode() for number in range(3000)]
    whole = gzip.compress(b"\n".join([b'{"a": 0}', *lines]))
    for length in range(500, len(whole) - 1, 1500):
        *rows, last = read(reader, tmp_path / "rows.gz", whole[:length])
        assert all(isinstance(row, Record) for row in rows)
        assert [row.line for row in [*rows, last]] == list(range(1 + (reader is read_csv), last.line + 1))
        assert outcomes([last]) == [(last.line, "damaged_file")]


def test_damaged_compression_is_named_or_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"a": 1}\n' * 3)
    assert outcomes(read(read_jsonl, tmp_path / "rows.gz", whole[:-8] + bytes(8)))[3:] == [(4, "damaged_file")]
    with pytest.raises(DataError, match="damaged before its first row"):
        read(read_jsonl, tmp_path / "rows.gz", whole[:10] + b"\xff" * 20)
    with pytest.raises(DataError, match="cut off"):
        read(read_json, tmp_path / "rows.gz", gzip.compress(b'[{"a": 1}]' + b" " * 9)[:-3])


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


@pytest.mark.parametrize(
    ("content", "header"),
    [
        (b"sep=|\r\na|b;c\r\n1|2\r\n", ["a", "b;c"]),
        (b'"a, b, c";d\r\n1;2\r\n', ["a, b, c", "d"]),
        (b"text\n1\n", ["text"]),
        (b"a\rb,c\r", ["a"]),
    ],
)
def test_what_divides_the_fields_is_found(content: bytes, header: list[str], tmp_path: Path) -> None:
    first = read(read_csv, tmp_path / "rows.csv", content)[0]
    found = list(first.values) if isinstance(first, Record) else first.detail
    assert found in (header, f"2 fields under {len(header)} columns")


def test_tsv_is_divided_by_tabs_alone(tmp_path: Path) -> None:
    rows = read(read_tsv, tmp_path / "rows.tsv", b"a,b,c\td\n1\t2\n")
    assert rows == [Record(2, {"a,b,c": "1", "d": "2"})]


FIELD = st.text(alphabet='ab,;\n"', max_size=6)


@given(st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=8))
def test_what_a_csv_writer_writes_is_read_as_it_was(rows: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("x", "y"), *rows])
        found = list(read_csv(path))
    assert [isinstance(row, Record) and tuple(row.values.values()) for row in found] == rows


@given(st.lists(st.text(alphabet="ab; ", max_size=6), min_size=1, max_size=8), st.integers(0, 7))
def test_a_quote_that_is_not_closed_costs_its_own_line(fields: list[str], at: int) -> None:
    clean = [f"{number},{field}" for number, field in enumerate(fields)]
    lines = [*clean[:at], '"open,x', *clean[at:]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        path.write_text("x,y\n" + "\n".join(lines) + "\n", encoding="utf-8")
        found = outcomes(list(read_csv(path)))
    broken = min(at, len(clean)) + 2
    assert found == [(line, "not_csv" if line == broken else "read") for line in range(2, len(lines) + 2)]


def test_the_inside_of_a_broken_field_is_not_taken_for_rows(tmp_path: Path) -> None:
    content = b'text,label\n"a "b" c\nd",e\n"f\nh",g\n"i",j"\nk,l\nm",n\n'
    rows = read(read_csv, tmp_path / "rows.csv", content)
    # Once a row is sound, quotes within a field are again what they are: a sign as any other.
    assert outcomes(rows) == [(2, "not_csv"), (3, "not_csv"), (4, "read"), (6, "read"), (7, "read"), (8, "read")]


def test_a_long_line_within_an_open_quote_is_met_once(tmp_path: Path) -> None:
    content = b'a,b\n"open,1\n2,3\n' + b"x" * (LONGEST_ROW + 1) + b"\n4,5\n"
    rows = read(read_csv, tmp_path / "rows.csv", content)
    assert outcomes(rows) == [(2, "not_csv"), (3, "read"), (4, "too_large"), (5, "read")]


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
        (9, "read"),
    ]


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


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": [str(i) for i in range(6)]}), path, row_group_size=2)
    content = bytearray(path.read_bytes())
    page = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0).dictionary_page_offset
    content[page : page + 20] = b"\xff" * 20
    path.write_bytes(content)
    damaged = [(3, "damaged_file"), (4, "damaged_file")]
    assert outcomes(list(read_parquet(path))) == [(1, "read"), (2, "read"), *damaged, (5, "read"), (6, "read")]


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
