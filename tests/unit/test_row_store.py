"""Rows on disk come back as they were, in any order and a batch at a time, however long some of them are."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import finetune.row_store
from finetune.row_store import RowStore, StoredRow, write_rows


def row(number: int, length: int = 5) -> StoredRow:
    return StoredRow(f"file {number % 2}", number, f"key {number}", f"group {number % 3}", "x" * length)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[StoredRow]:
    monkeypatch.setattr(finetune.row_store, "ROWS_A_BATCH", 10)
    monkeypatch.setattr(finetune.row_store, "CHARACTERS_A_BATCH", 500)
    return [row(number, 400 if number % 7 == 0 else 5) for number in range(95)]


def test_rows_come_back_in_the_order_asked_for(rows: list[StoredRow], tmp_path: Path) -> None:
    assert write_rows(tmp_path / "rows.arrow", iter(rows)) == len(rows)
    store = RowStore(tmp_path / "rows.arrow")
    assert len(store) == len(rows)
    order = random.Random(0)
    for numbers in (range(95), order.choices(range(95), k=200), [94], []):
        assert list(store.rows(list(numbers))) == [rows[number] for number in numbers]
        assert list(store.keys(list(numbers))) == [rows[number].key for number in numbers]
    assert list(store.column("group")) == [one.group for one in rows]


def test_a_batch_is_bounded_by_rows_and_by_characters(rows: list[StoredRow], tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.arrow", iter(rows))
    batches = list(RowStore(tmp_path / "rows.arrow")._batches(list(range(95))))
    sizes = [(batch.num_rows, sum(map(len, batch.column("conversation").to_pylist()))) for batch in batches]
    assert all(count <= 10 and characters < 900 for count, characters in sizes)
    assert any(count < 10 for count, _ in sizes[:-1]), "the long rows fill a batch"


def test_no_rows_at_all(tmp_path: Path) -> None:
    assert write_rows(tmp_path / "rows.arrow", iter(())) == 0
    assert len(RowStore(tmp_path / "rows.arrow")) == 0
