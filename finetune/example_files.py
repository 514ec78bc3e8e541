"""Examples on disk as Arrow, memory-mapped: the one module that speaks to the datasets library."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.compute
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from numpy.typing import NDArray

from evaluation.rendering import IGNORE, Example

EXAMPLES_A_BATCH = 1000
"""Examples written at once."""
TRAIN_ROWS = "train_rows.txt"
"""Beside train.arrow: the file:line that each example comes from, one a line, in the order of the examples."""
FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write examples to an Arrow file with the columns that TRL takes as they are: input_ids and labels."""
    with ArrowWriter(path=str(path), features=FEATURES) as writer:
        stream = iter(examples)
        while batch := list(islice(stream, EXAMPLES_A_BATCH)):
            writer.write_batch({"input_ids": [e.input_ids for e in batch], "labels": [e.labels for e in batch]})
        writer.finalize()


def load_examples(path: Path) -> Dataset:
    """Memory-map a file of examples."""
    return Dataset.from_file(str(path))


def example_at(dataset: Dataset, index: int) -> Example:
    """Read one example."""
    row = dataset[index]
    return Example(tuple(row["input_ids"]), tuple(row["labels"]))


def read_lengths(dataset: Dataset) -> NDArray[np.int32]:
    """Return the length of each example in tokens, without reading the tokens."""
    return np.asarray(pyarrow.compute.list_value_length(dataset.data.column("input_ids")), np.int32)


def count_trained(dataset: Dataset) -> NDArray[np.int64]:
    """Return how many tokens of each example have a label, reading a batch at a time."""
    counts = [np.empty(0, np.int64)]
    for chunk in dataset.data.column("labels").chunks:
        seen = np.concatenate([[0], np.cumsum(chunk.flatten().to_numpy() != IGNORE)])
        offsets = chunk.offsets.to_numpy() - chunk.offsets[0].as_py()
        counts.append(np.diff(seen[offsets]))
    return np.concatenate(counts)
