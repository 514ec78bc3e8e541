"""Knows the texts of a run's rows by hashes of their parts, to find them in what is published."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.files import read_jsonl_lines
from evaluation.rendering import IGNORE, Renderer
from evaluation.task import Sample
from finetune.audit_records import Audit
from finetune.errors import DataError
from finetune.example_files import example_at, load_examples
from finetune.run_directory import RunDirectory

BLOCK = 32
"""Characters of a part."""
STRIDE = 8
"""Parts begin at every eighth character: 39 characters in a row of any row are found."""
MOST_ROWS = 0.01
"""What stands in a larger share of the rows is the question that all of them ask, or a class; no row's own text."""
LABEL_ROWS, LONG_LABEL_ROWS = 2, 5
"""Training rows from which an answer of a classification is a class, and one of BLOCK characters or more."""

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SPREAD = np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True)
class RowTexts:
    """Hashes of the parts of all rows, sorted; what many rows share is left out."""

    hashes: NDArray[np.uint64]

    def find(self, text: str) -> Iterator[int]:
        """Yield the first character of every part of a row that stands in a text."""
        yield from np.flatnonzero(np.isin(_rolling(text), self.hashes)).tolist()


def public_labels(audit: Audit, stated: bool) -> tuple[str, ...]:
    """Return the labels of a classification, which are published; `stated` says that all of them may be.

    A column of names or notes may have been taken for the classes: most of its values are long, or stand in one row.

    Raises:
        DataError: a label may be a row's own text; says how many, never which.
    """
    labels = audit.labels or {}
    odd = [name for name, rows in labels.items() if rows < (LABEL_ROWS if len(name) < BLOCK else LONG_LABEL_ROWS)]
    if stated or not (odd or (labels and audit.repeated)):
        return tuple(labels)
    what = (
        f"{len(odd)} of {len(labels)} labels may be a row's own text: they stand in fewer than {LABEL_ROWS} training "
        f"rows, or have {BLOCK} characters or more and stand in fewer than {LONG_LABEL_ROWS}"
        if odd
        else "rows were repeated to even out classes or sources, so how many rows have a label is not known"
    )
    hint = "look at the labels (report.md); where all of them are names of classes, say --public-labels"
    raise DataError(what, where="labels", hint=hint)


def collect_rows(run: RunDirectory, renderer: Renderer, shared: Iterable[str]) -> RowTexts:
    """Read the texts of training, validation and held-out rows of a run.

    Training and validation rows are those that were learned, as tokens; no row is kept, only hashes.
    """
    return index_rows(_row_texts(run, renderer), shared)


def index_rows(rows: Iterable[Sequence[str]], shared: Iterable[str] = ()) -> RowTexts:
    """Hash the parts of rows, each given as its texts; `shared` are texts that may be shown, such as class names."""
    parts = [np.unique(np.concatenate([_parts(text) for text in row] or [_parts("")])) for row in rows]
    found, counts = np.unique(np.concatenate(parts or [_parts("")]), return_counts=True)
    most = max(2, int(MOST_ROWS * len(parts)))
    # A class with the space beside it says no more than the class, also where a row goes on behind that space.
    spaced = (f"{space}{text}{space}" for text in shared for space in (" ", "\n"))
    allowed = np.concatenate([_parts(""), *(_rolling(text) for text in spaced)])
    return RowTexts(np.setdiff1d(found[counts <= most], allowed))


def _row_texts(run: RunDirectory, renderer: Renderer) -> Iterator[list[str]]:
    special = re.compile("|".join(map(re.escape, renderer.special_texts)) or "(?!)")
    for name in ("train.arrow", "validation.arrow"):
        path = run.data / name
        if not path.exists():
            continue
        rows = load_examples(path)
        for example in (example_at(rows, i) for i in range(len(rows))):
            pieces = _pieces(example.input_ids, example.labels)
            yield [text for piece in pieces for text in special.split(renderer.text(piece))]
    for _, line in read_jsonl_lines(run.data / "held_out.jsonl"):
        sample = Sample.model_validate_json(line)
        yield [*(message.content for message in sample.prompt.messages), sample.reference]


def _pieces(ids: Sequence[int], labels: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Cut an example where training on it begins and ends."""
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or (labels[i] == IGNORE) != (labels[start] == IGNORE):
            yield tuple(ids[start:i])
            start = i


def _parts(text: str) -> NDArray[np.uint64]:
    """Hashes of a text's parts, the last one at its end; none of a text shorter than one."""
    rolling = _rolling(text)
    return np.append(rolling[::STRIDE], rolling[-1:])


def _rolling(text: str) -> NDArray[np.uint64]:
    """Hash the BLOCK characters from every character on, as 64-bit numbers that overflow."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    if len(codes) < BLOCK:
        return np.empty(0, np.uint64)
    mixed = (codes + np.uint64(1)) * _SPREAD
    mixed ^= mixed >> np.uint64(29)
    hashes = np.zeros(len(codes) - BLOCK + 1, np.uint64)
    for i in range(BLOCK):
        hashes = hashes * _FACTOR + mixed[i : i + len(hashes)]
    return hashes
