"""Bad input: whatever is in a file, each of its rows is used or set aside with file, line and reason.

Every kind is a file made here in which good rows stand around the bad one, read as `finetune prepare` reads it.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from figures import Figures
from rich.console import Console

from finetune.console import Reporter
from finetune.errors import DataError
from finetune.prepare_rows import Collected, collect_source
from finetune.recipe_data import Source

GOOD = {"prompt": "Which colour?", "completion": "Blue."}
TURNS = [{"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "Blue."}]
FIFTY_MEGABYTES = "⟨50 MB⟩"
"""Stands for so many letters until its file is written."""


@dataclass(frozen=True)
class Kind:
    """A kind of bad input: the file, and what must become of the rows that it was made of."""

    name: str
    content: bytes
    used: Sequence[int] = (1, 3)
    """Lines of the rows that are used."""
    aside: Mapping[int, str] = field(default_factory=dict)
    """Line → reason of those that are set aside."""
    file: str = "rows.jsonl"
    rows: str = "prompt_completion"


def lines(*rows: object) -> bytes:
    """Write rows as JSONL; bytes are written as they are."""
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def between(name: str, row: object, reason: str) -> Kind:
    """Put a bad line between two good ones."""
    return Kind(name, lines(GOOD, row, GOOD), aside={2: reason})


def fine(name: str, row: object, used: Sequence[int] = (1, 2, 3)) -> Kind:
    """Put a line that only looks bad between two good ones."""
    return Kind(name, lines(GOOD, row, GOOD), used)


def turns(name: str, messages: object, reason: str) -> Kind:
    """Put a bad list of turns between two good ones."""
    rows = [{"messages": TURNS}, {"messages": messages}, {"messages": TURNS}]
    return Kind(name, lines(*rows), aside={2: reason}, rows="messages")


def csv(name: str, content: str | bytes, used: Sequence[int], aside: Mapping[int, str], file: str = "rows.csv") -> Kind:
    """Make a CSV file."""
    return Kind(name, content.encode() if isinstance(content, str) else content, used, aside, file)


def parquet(name: str, rows: list[dict[str, object]], used: Sequence[int], aside: Mapping[int, str]) -> Kind:
    """Make a Parquet file."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    template = "messages" if "messages" in rows[0] else "prompt_completion"
    return Kind(name, file.getvalue(), used, aside, "rows.parquet", template)


def damaged_parquet() -> Kind:
    """Make a Parquet file of three row groups and spoil the second."""
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD] * 6), file, row_group_size=2)
    content = bytearray(file.getvalue())
    page = pyarrow.parquet.ParquetFile(file).metadata.row_group(1).column(0).dictionary_page_offset
    content[page : page + 20] = b"\xff" * 20
    aside = {3: "damaged_file", 4: "damaged_file"}
    return Kind("a Parquet file with a damaged row group", bytes(content), (1, 2, 5, 6), aside, "rows.parquet")


def cut_gzip(at: int) -> bytes:
    """Compress a thousand rows and cut them off, counted from the end; rows differ, so that the cut is among them."""
    rows = [GOOD | {"prompt": f"{i * 7919 % 10007} {i}"} for i in range(1000)]
    return gzip.compress(lines(*rows), mtime=0)[:at]


def rows_before(content: bytes) -> int:
    """Count the whole lines that a cut gzip file still holds, by other means than those tested."""
    return zlib.decompressobj(wbits=31).decompress(content).count(b"\n")


def deep(levels: int) -> bytes:
    """Nest lists in a column that no template reads."""
    return json.dumps(GOOD)[:-1].encode() + b', "more": ' + b"[" * levels + b"]" * levels + b"}"


def number(text: bytes) -> bytes:
    """Put a number into a column that no template reads."""
    return json.dumps(GOOD)[:-1].encode() + b', "more": ' + text + b"}"


HEAD = "prompt,completion\n"
CUT = cut_gzip(3000)
TWO = GOOD | {"id": 7}
WRONG_ANSWERS = {"a number": 5, "true": True, "a list": ["Blue."], "an object": {"text": "Blue."}}

KINDS = (
    between("a missing column", {"prompt": "Which colour?"}, "missing_column"),
    between("a null", GOOD | {"completion": None}, "null_value"),
    *(between(f"{what} for a text", GOOD | {"completion": v}, "wrong_type") for what, v in WRONG_ANSWERS.items()),
    between("an empty answer", GOOD | {"completion": ""}, "empty_answer"),
    between("an answer of spaces", GOOD | {"completion": " \n\u3000"}, "empty_answer"),
    between("an empty question", GOOD | {"prompt": ""}, "empty_prompt"),
    between("NUL", GOOD | {"prompt": "a\0b"}, "nul_character"),
    between("invalid UTF-8", b'{"prompt": "a", "completion": "\xff"}', "not_utf8"),
    between("half of a surrogate pair", rb'{"prompt": "a", "completion": "\ud83d"}', "not_unicode"),
    between("a list for a row", [GOOD, GOOD], "not_an_object"),
    between("a text for a row", "Blue.", "not_an_object"),
    between("single quotes for JSON", b"{'prompt': 'a', 'completion': 'b'}", "not_json"),
    between("two objects on a line", json.dumps(GOOD).encode() * 2, "not_json"),
    between("NaN", number(b"NaN"), "not_finite"),
    between("a number beyond all floats", number(b"1e999"), "not_finite"),
    between("a number of 5,000 digits", number(b"9" * 5000), "not_json"),
    between("a key twice", b'{"prompt": "a", "completion": "b", "completion": "c"}', "repeated_key"),
    between("JSON nested 60 levels", deep(60), "too_deep"),
    between("JSON nested 100,000 levels", deep(100_000), "too_deep"),
    between("a row of 50 MB", json.dumps(GOOD | {"prompt": FIFTY_MEGABYTES}, ensure_ascii=False).encode(), "too_large"),
    fine("nested JSON beside the columns that are read", deep(40)),
    fine("an integer of 1,000 digits beside them", number(b"9" * 1000)),
    fine("CRLF", json.dumps(GOOD).encode() + b"\r"),
    fine("a blank line", b"  ", used=(1, 3)),
    Kind("a byte order mark", b"\xef\xbb\xbf" + lines(GOOD, GOOD), (1, 2)),
    Kind("ids that stand twice", lines(TWO, TWO, TWO), (1, 2, 3)),
    Kind("a last line that is cut off", lines(GOOD, GOOD)[:-9], (1,), {2: "not_json"}),
    turns("roles out of order", [TURNS[0], TURNS[0], TURNS[1]], "roles_out_of_order"),
    turns("no answer at the end", [*TURNS, TURNS[0]], "no_answer_at_end"),
    turns("an unknown role", [{"role": "narrator", "content": "a"}, TURNS[1]], "unknown_role"),
    turns("no turns", [], "no_turns"),
    turns("a text for a turn", ["Which colour?", TURNS[1]], "turn_not_an_object"),
    turns("a turn without its text", [{"role": "user"}, TURNS[1]], "turn_incomplete"),
    turns("a text for the turns", "Which colour?", "wrong_type"),
    csv("a CSV row with too few fields", HEAD + "a,b\na\na,b\n", (2, 4), {3: "ragged"}),
    csv("a CSV row with too many fields", HEAD + "a,b\na,b,c\na,b\n", (2, 4), {3: "ragged"}),
    csv("a CSV of Excel with semicolons", "\ufeffprompt;completion\r\na, b;c\r\n", (2,), {}),
    csv("a CSV of Excel with sep=", "sep=;\r\nprompt;completion\r\na, b;c\r\n", (3,), {}),
    csv("a CSV with tabs", "prompt\tcompletion\na, b\tc\n", (2,), {}),
    csv("a TSV", "prompt\tcompletion\na, b; c\td\n", (2,), {}, "rows.tsv"),
    csv("a CSV with line breaks within quotes", HEAD + '"a\r\n\nb",c\nd,e\n', (2, 5), {}),
    csv("a CSV with a quote that is not closed", HEAD + 'a,b\n"a,b\na,b\na,b\n', (2, 4, 5), {3: "not_csv"}),
    csv(
        "a CSV with quotes within quotes",
        HEAD + 'a,b\n"a "b" c\nd",e\nf,g\n',
        (2, 5),
        {3: "not_csv", 4: "not_csv"},
    ),
    csv("a CSV in Latin-1", HEAD.encode() + b"a,b\n\xe4,b\na,b\n", (2, 4), {3: "not_unicode"}),
    csv("a CSV with NUL", HEAD + "a,b\na,\0\na,b\n", (2, 4), {3: "nul_character"}),
    csv("a CSV with a field of 50 MB", HEAD + f"a,b\n{FIFTY_MEGABYTES},b\na,b\n", (2, 4), {3: "too_large"}),
    Kind(
        "a JSON list with other things in it",
        json.dumps([GOOD, 3, GOOD]).encode(),
        (1, 3),
        {2: "not_an_object"},
        "rows.json",
    ),
    Kind("rows in gzip", gzip.compress(lines(GOOD, 3, GOOD)), (1, 3), {2: "not_an_object"}, "rows.jsonl.gz"),
    Kind(
        "gzip that is cut off",
        CUT,
        range(1, rows_before(CUT) + 1),
        {rows_before(CUT) + 1: "damaged_file"},
        "rows.jsonl.gz",
    ),
    Kind(
        "gzip with a wrong checksum",
        cut_gzip(-8) + bytes(8),
        range(1, 1001),
        {1001: "damaged_file"},
        "rows.jsonl.gz",
    ),
    parquet("a Parquet file with nested columns", [{"messages": TURNS}, {"messages": None}], (1,), {2: "null_value"}),
    parquet("a Parquet file with binary values", [GOOD | {"x": None}, GOOD | {"x": b"\0"}], (1,), {2: "binary_value"}),
    parquet(
        "a Parquet file with dates and decimals", [GOOD | {"x": datetime(2026, 1, 2), "y": Decimal("1.5")}], (1,), {}
    ),
    damaged_parquet(),
)

# A file that is not what it is called, or holds no rows at all, is refused as a whole.
REFUSED = {
    "an empty file": ("rows.jsonl", b"", "no rows"),
    "an empty CSV": ("rows.csv", b"", "no header"),
    "a header alone": ("rows.csv", HEAD.encode(), "no rows"),
    "a header with a column twice": ("rows.csv", b"prompt,completion,prompt\na,b,c\n", "twice: prompt"),
    "UTF-16": ("rows.jsonl", lines(GOOD).decode().encode("utf-16"), "UTF-16"),
    "UTF-16 of Excel": ("rows.csv", HEAD.encode("utf-16"), "UTF-16"),
    "a workbook named .csv": ("rows.csv", b"PK\x03\x04" + bytes(50), "Excel"),
    "gzip without .gz": ("rows.jsonl", gzip.compress(lines(GOOD)), "compressed"),
    ".gz without gzip": ("rows.jsonl.gz", lines(GOOD), "not gzip"),
    "gzip cut off in its head": ("rows.jsonl.gz", gzip.compress(lines(GOOD))[:5], "cut off"),
    "a .json.gz that is cut off": ("rows.json.gz", gzip.compress(json.dumps([GOOD] * 99).encode())[:-20], "cut off"),
    "a JSON list named .jsonl": ("rows.jsonl", json.dumps([GOOD, GOOD]).encode(), "the .json form"),
    "JSON lines named .json": ("rows.json", lines(GOOD, GOOD), "the .jsonl form"),
    "JSON that is no list": ("rows.json", json.dumps({"rows": [GOOD]}).encode(), "not a list"),
    "JSON that is cut off": ("rows.json", json.dumps([GOOD, GOOD]).encode()[:-5], "not JSON"),
    "a Parquet file that is cut off": ("rows.parquet", KINDS[-1].content[:-30], "Parquet"),
    "JSON lines named .parquet": ("rows.parquet", lines(GOOD), "Parquet"),
    "Parquet named .jsonl": ("rows.jsonl", KINDS[-1].content, "Parquet"),
}


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes, str], Collected]:
    """Return what writes a file and reads it as the data stage does."""
    monkeypatch.chdir(tmp_path)
    reporter = Reporter(Console(file=io.StringIO()))

    def write_and_read(file: str, content: bytes, rows: str) -> Collected:
        Path(file).write_bytes(content.replace(FIFTY_MEGABYTES.encode(), b"a" * 50_000_000))
        return collect_source(Source(source=file, rows=rows), None, None, tmp_path / "cache", reporter)

    return write_and_read


def test_every_row_is_used_or_set_aside(read: Callable[[str, bytes, str], Collected], figures: Figures) -> None:
    failed = {kind.name: found for kind in KINDS if (found := _difference(kind, read))}
    rows = sum(len(kind.used) + len(kind.aside) for kind in KINDS)
    names = {kind.name for kind in KINDS}
    claim = "each row is used, or set aside with file, line and reason, and its neighbours are used"
    figures.report("Bad input", claim, len(names), "kinds", len(failed), f"{rows:,} rows, 0 lost")
    assert failed == {}
    assert len(names) == len(KINDS) >= 25


def test_a_file_that_is_not_what_it_is_called_is_refused(
    read: Callable[[str, bytes, str], Collected], figures: Figures
) -> None:
    failed = [name for name, (file, content, says) in REFUSED.items() if not _refused(read, file, content, says)]
    claim = "a file without rows, or of another kind than its name, is refused with its name and the reason"
    figures.report("Bad input", claim, len(REFUSED), "kinds", len(failed))
    assert failed == []


def _difference(kind: Kind, read: Callable[[str, bytes, str], Collected]) -> str:
    """Say in what the account differs from how the file was made; nothing where it does not."""
    collected = read(kind.file, kind.content, kind.rows)
    rows = list(collected.rows.rows(range(len(collected.rows))))
    used, aside = [row.line for row in rows], {row.line: row.reason for row in collected.set_aside}
    places = {row.file for row in rows} | {row.file for row in collected.set_aside}
    explained = all(row.detail for row in collected.set_aside) and len(aside) == len(collected.set_aside)
    if (used, aside, places, explained) == (list(kind.used), dict(kind.aside), {kind.file}, True):
        return ""
    return f"used {used[:9]}, set aside {aside} of {places}"


def _refused(read: Callable[[str, bytes, str], Collected], file: str, content: bytes, says: str) -> bool:
    try:
        read(file, content, "prompt_completion")
    except DataError as error:
        return file in error.where and says in str(error)
    return False
