"""Sources: found, checked and read, each kind from files made here."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from evaluation.files import sha256_of_file
from finetune.cache import file_entry
from finetune.errors import DataError
from finetune.recipe_data import Source
from finetune.rows import BadRow, Row, read_rows, resolve_source, row_key

COMMIT = "0" * 40


def source(name: str, **more: str) -> Source:
    """Describe a source with a template that plays no part here."""
    return Source.model_validate({"source": name, "rows": "text", **more})


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_local_file_is_found_from_the_current_folder(tmp_path: Path) -> None:
    Path("rows.jsonl").write_text('{"text": "a"}\n{\n')
    named = source("rows.jsonl")
    resolved = resolve_source(named, tmp_path / "cache", print)
    assert resolved.sha256 == sha256_of_file(Path("rows.jsonl"))
    good, bad = list(read_rows(named, resolved.path))
    assert good == Row("rows.jsonl", 1, {"text": "a"})
    assert isinstance(bad, BadRow)
    assert (bad.file, bad.line, bad.reason) == ("rows.jsonl", 2, "not_json")


def test_all_kinds_of_file_give_the_same_rows(tmp_path: Path) -> None:
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    Path("rows.json").write_text('[{"text": "a"}]')
    Path("rows.csv").write_text("text\na\n")
    Path("rows.tsv").write_text("text\na\n")
    for suffix in ("jsonl", "json", "csv", "tsv"):
        Path(f"rows.{suffix}.gz").write_bytes(gzip.compress(Path(f"rows.{suffix}").read_bytes()))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), "rows.parquet")
    keys = set()
    packed = ("jsonl.gz", "json.gz", "csv.gz", "tsv.gz", "JSONL.GZ")
    Path("rows.JSONL.GZ").write_bytes(Path("rows.jsonl.gz").read_bytes())
    for suffix in ("jsonl", "json", "csv", "tsv", "parquet", *packed):
        [row] = read_rows(source(f"rows.{suffix}"), tmp_path / f"rows.{suffix}")
        assert isinstance(row, Row)
        keys.add(row_key(row))
    assert len(keys) == 1


def test_a_key_depends_on_the_columns_and_not_on_their_order_or_place() -> None:
    one = Row("a.jsonl", 1, {"text": "x", "label": "y"})
    assert row_key(one) == row_key(Row("b.jsonl", 9, {"label": "y", "text": "x"}))
    assert row_key(one) != row_key(Row("a.jsonl", 1, {"text": "x", "label": "z"}))


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    Path("rows.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="expected " + "0" * 64):
        resolve_source(source("rows.jsonl", sha256="0" * 64), tmp_path, print)


def test_a_file_that_is_not_there_or_not_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo("pipe.jsonl")
    with pytest.raises(DataError, match="no such file"):
        resolve_source(source("absent.jsonl"), tmp_path, print)
    for name in ("pipe.jsonl", "/dev/zero", str(tmp_path)):
        with pytest.raises(DataError, match="not a plain file"):
            resolve_source(source(name), tmp_path, print)


def test_other_kinds_of_file_are_refused_with_those_accepted(tmp_path: Path) -> None:
    Path("rows.jsnol").write_text("")
    with pytest.raises(DataError, match=r"did you mean '\.jsonl'"):
        list(read_rows(source("rows.jsnol"), Path("rows.jsnol")))
    with pytest.raises(DataError, match="unpack it"):
        list(read_rows(source("rows.parquet.gz"), Path("rows.parquet.gz")))


def test_a_file_from_a_wheel_is_taken_from_the_cache_without_the_network(tmp_path: Path) -> None:
    sha256 = hashlib.sha256(b'{"text": "a"}\n').hexdigest()
    entry = file_entry(tmp_path / "cache", sha256, "rows.jsonl")
    entry.parent.mkdir(parents=True)
    entry.write_bytes(b'{"text": "a"}\n')
    named = source("pypi:shelf==1.0/shelf/rows.jsonl", sha256=sha256)
    resolved = resolve_source(named, tmp_path / "cache", print)
    assert (resolved.path, resolved.sha256) == (entry, sha256)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (source("pypi:shelf==1.0/shelf/rows.jsonl"), "needs its sha256"),
        (source("hub:org/name"), "needs its revision"),
        (source("hub:name", revision=COMMIT), "hub:org/name"),
        (source("hub:../name", revision=COMMIT), "hub:org/name"),
        (source("rows.jsonl", revision=COMMIT), "belong to hub data sets"),
        (source("rows.jsonl", split="test"), "belong to hub data sets"),
    ],
)
def test_what_a_kind_of_source_needs_is_asked_for(named: Source, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        resolve_source(named, tmp_path, print)


def test_a_builder_reads_its_own_format(tmp_path: Path) -> None:
    Path("list.xml").write_text(
        "<t><chapter><name>1</name><desc>One (A00-B99)</desc><section><diag><name>A01</name>"
        "<desc>Cholera</desc></diag></section></chapter></t>"
    )
    [row] = read_rows(source("list.xml", builder="icd10-chapters"), Path("list.xml"))
    assert isinstance(row, Row)
    assert row.values["label"] == "One"


def test_a_folder_of_several_files_is_read_in_order(tmp_path: Path) -> None:
    for number in (2, 1):
        path = Path("shards/data") / f"train-{number}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"text": "{number}"}}\n')
    rows = list(read_rows(source("hub:org/name", revision=COMMIT), Path("shards")))
    assert [row.file for row in rows] == [f"hub:org/name/data/train-{number}.jsonl" for number in (1, 2)]


def test_reading_rows_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'pyarrow', 'huggingface_hub', 'datasets'}"
    program = (
        "import sys, finetune.rows, finetune.row_templates, finetune.bases, finetune.splits\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
