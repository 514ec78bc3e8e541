"""Examples on disk: what is read without reading tokens is what was written, over the borders of batches."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from evaluation.rendering import IGNORE, Example
from finetune.example_files import (
    EXAMPLES_A_BATCH,
    count_trained,
    example_at,
    load_examples,
    read_lengths,
    write_examples,
)


def examples(count: int) -> list[Example]:
    draw = random.Random(count)
    made = []
    for _ in range(count):
        ids = tuple(draw.randrange(50) for _ in range(draw.randrange(1, 6)))
        made.append(Example(ids, tuple(draw.choice((IGNORE, token)) for token in ids)))
    return made


@pytest.mark.parametrize("count", [0, 1, EXAMPLES_A_BATCH, 2 * EXAMPLES_A_BATCH + 1])
def test_lengths_and_labels_are_those_written(tmp_path: Path, count: int) -> None:
    written = examples(count)
    write_examples(tmp_path / "train.arrow", iter(written))
    found = load_examples(tmp_path / "train.arrow")
    assert len(found) == count
    assert [example_at(found, i) for i in range(0, count, 97)] == written[::97]
    assert read_lengths(found).tolist() == [len(example.input_ids) for example in written]
    assert count_trained(found).tolist() == [example.trained_tokens for example in written]
