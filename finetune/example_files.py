"""Examples on disk as Arrow, memory-mapped: the one module that speaks to the datasets library."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter

from evaluation.rendering import Example

FEATURES = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write examples to an Arrow file with the columns that TRL takes as they are: input_ids and labels."""
    with ArrowWriter(path=str(path), features=FEATURES) as writer:
        for example in examples:
            writer.write({"input_ids": list(example.input_ids), "labels": list(example.labels)})
        writer.finalize()


def load_examples(path: Path) -> Dataset:
    """Memory-map a file of examples."""
    return Dataset.from_file(str(path))


def example_at(dataset: Dataset, index: int) -> Example:
    """Read one example."""
    row = dataset[index]
    return Example(tuple(row["input_ids"]), tuple(row["labels"]))
