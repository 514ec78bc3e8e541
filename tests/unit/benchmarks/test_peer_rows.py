"""The rows of the comparison: made the same each time, and the same tokens in each tool's form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import build_tokenizer

from benchmarks.peer_rows import LONGEST, Row, make_rows, read_rows, write_rows


def test_made_rows_are_the_same_each_time(tmp_path: Path) -> None:
    functions = [f'def f{size}():\n    """{"word " * size}"""\n' for size in range(1, 400, 7)]
    (tmp_path / "module.py").write_text("".join(functions))
    rows = make_rows(8, tmp_path)
    assert rows == make_rows(8, tmp_path)
    assert all(row.question.startswith("What does `module.f") for row in rows)


def test_made_rows_differ_from_each_other_and_are_skewed() -> None:
    rows = make_rows(32)
    assert len({row.answer for row in rows}) == 32
    lengths = sorted(len(row.answer) for row in rows)
    assert lengths[3] < 100 < 300 < lengths[16] < 700 < 1500 < lengths[28] <= LONGEST


def test_all_forms_hold_the_same_text_and_leave_the_same_rows_out(tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path / "model")
    rows = [Row("How?", "So."), Row("Why?", "Because. " * 200), Row("When?", "Now.")]
    files, rendered = write_rows(rows, tmp_path / "model", 256, tmp_path / "rows")
    assert read_rows(files.messages) == [rows[0], rows[2]]
    texts = [(row.prompt, row.answer) for row in rendered]
    assert texts[0] == ("<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n", "So.<|im_end|>")
    completions = [json.loads(line) for line in files.texts.read_text().splitlines()]
    assert [(row["prompt"], row["completion"]) for row in completions] == texts
    for path, end in ((files.litgpt / "train.json", "<|im_end|>"), (files.llamafactory / "rows.json", "")):
        assert [(row["instruction"], row["output"] + end) for row in json.loads(path.read_text())] == texts


def test_a_row_counts_its_tokens_and_those_of_its_answer(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path / "model")
    _, (row,) = write_rows([Row("How?", "So.")], tmp_path / "model", 256, tmp_path / "rows")
    assert row.tokens == len(tokenizer(row.prompt + row.answer)["input_ids"])
    assert row.trained_tokens == len(tokenizer("So.<|im_end|>")["input_ids"])


def test_rows_of_more_turns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    turns = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: a row must have one user turn"):
        read_rows(path)
