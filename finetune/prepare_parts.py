"""Which rows are for what: training, validation, held out. A row is a number here, so that a million are small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from finetune.errors import DataError
from finetune.mixing import balance, mix
from finetune.prepare_rows import Collected
from finetune.recipe_data import Data, HeldOutFraction
from finetune.row_store import ROWS_A_BATCH, RowStore, StoredRow, runs_by_place
from finetune.splits import draw, split_by_fraction
from finetune.workers import chunked

Numbers = NDArray[np.int64]
"""Numbers of rows, counted from 0 over all sources in order."""


class RowTable:
    """The rows of several sources as one sequence."""

    def __init__(self, sources: Sequence[Collected]) -> None:
        """Take the sources in the order in which their rows are numbered."""
        self.sources = tuple(sources)
        self._starts = np.cumsum([0, *(len(read.rows) for read in sources)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def numbers_of(self, source: int) -> Numbers:
        """Return the numbers of a source's rows."""
        return np.arange(self._starts[source], self._starts[source + 1])

    def source_of(self, numbers: Numbers) -> NDArray[np.intp]:
        """Say which source each row is from."""
        return np.searchsorted(self._starts, numbers, side="right") - 1

    def count_by_source(self, numbers: Numbers) -> list[int]:
        """Count how many of these rows each source has."""
        counts: list[int] = np.bincount(self.source_of(numbers), minlength=len(self.sources)).tolist()
        return counts

    def rows(self, numbers: Iterable[int]) -> Iterator[StoredRow]:
        """Read rows in the order asked for, a batch at a time."""
        for store, local in self._runs(numbers):
            yield from store.rows(local)

    def keys(self, numbers: Iterable[int]) -> Iterator[str]:
        """Read the keys of rows in the order asked for, and nothing else of them."""
        for store, local in self._runs(numbers):
            yield from store.keys(local)

    def groups(self, sources: int) -> Iterator[str]:
        """Yield what splits keep together, for every row of the first `sources` sources."""
        return chain.from_iterable(read.rows.column("group") for read in self.sources[:sources])

    def _runs(self, numbers: Iterable[int]) -> Iterator[tuple[RowStore, list[int]]]:
        """Cut numbers into runs of rows of one source, and count those within it."""
        for chunk in chunked(numbers, ROWS_A_BATCH):
            for source, local in runs_by_place(self._starts, chunk):
                yield self.sources[source].rows, local.tolist()


@dataclass(frozen=True)
class Parts:
    """Rows by purpose; training rows may stand more than once, where sources are mixed or classes evened out."""

    train: Numbers
    validation: Numbers
    held_out: Numbers
    left_over: Numbers = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows over a limit, and those that mixing or balance did not draw."""

    def counts(self, table: RowTable) -> dict[str, list[int]]:
        """Count each source's rows by purpose, repeated ones once."""
        return {
            name: table.count_by_source(np.unique(numbers))
            for name, numbers in (
                ("train", self.train),
                ("validation", self.validation),
                ("held_out", self.held_out),
                ("left_over", self.left_over),
            )
        }


def assign(data: Data, table: RowTable, seed: int) -> Parts:
    """Split the rows by group and apply the limits; what is assigned depends on content, never on order.

    The first sources of the table are those that are trained on; one more, if there is one, is held out whole.

    Raises:
        DataError: nothing is left for one of the purposes.
    """
    trained = len(data.train)
    rest = np.arange(sum(len(read.rows) for read in table.sources[:trained]))
    held_out = table.numbers_of(trained) if trained < len(table.sources) else rest[:0]
    if isinstance(data.held_out, HeldOutFraction):
        inside = split_by_fraction(table.groups(trained), data.held_out.fraction, "held_out")
        held_out, rest = _divide(rest, inside)
    validation = rest[:0]
    if data.validation is not None:
        inside = split_by_fraction(table.groups(trained), data.validation.fraction, "validation")
        validation, rest = _divide(rest, inside)
    source = table.source_of(rest)
    limited = [
        *(_limited(table, rest[source == i], given.limit, seed) for i, given in enumerate(data.train)),
        _limited(table, validation, data.validation.limit if data.validation else None, seed),
        _limited(table, held_out, data.held_out.limit, seed),
    ]
    *train, validation, held_out = (kept for kept, _ in limited)
    parts = Parts(np.concatenate(train), validation, held_out, np.concatenate([left for _, left in limited]))
    _refuse_empty(data, parts)
    return parts


def weigh(data: Data, table: RowTable, parts: Parts, seed: int) -> Parts:
    """Mix the training sources by their weights and even out the classes, where the recipe asks for it.

    Raises:
        DataError: a source has too few rows for its share, or classes are to be evened out and rows have none.
    """
    train = parts.train
    weights = [source.weight for source in data.train if source.weight is not None]
    if weights or data.mixing is not None:
        source = table.source_of(train)
        by_source = [train[source == i] for i in range(len(data.train))]
        keys = [list(table.keys(numbers.tolist())) for numbers in by_source]
        chosen = mix(keys, weights or None, data.mixing.temperature if data.mixing else None, seed)
        train = np.concatenate([numbers[np.asarray(c, int)] for numbers, c in zip(by_source, chosen, strict=True)])
    if data.balance is not None:
        _refuse_without_classes(table)
        rows = [(row.parsed().answer(), row.key) for row in table.rows(train.tolist())]
        labels, keys_of_rows = [label for label, _ in rows], [key for _, key in rows]
        even = balance(labels, keys_of_rows, data.balance.method, data.balance.maximum_ratio, seed)
        train = train[np.asarray(even, int)]
    not_drawn = np.setdiff1d(parts.train, train)
    return replace(parts, train=train, left_over=np.concatenate([parts.left_over, not_drawn]))


def _divide(rows: Numbers, inside: set[int]) -> tuple[Numbers, Numbers]:
    taken = np.isin(rows, np.fromiter(inside, np.int64, len(inside)))
    return rows[taken], rows[~taken]


def _limited(table: RowTable, rows: Numbers, limit: int | None, seed: int) -> tuple[Numbers, Numbers]:
    """Return the rows that a limit leaves, and those that are over it."""
    if limit is None or limit >= len(rows):
        return rows, rows[:0]
    drawn = np.zeros(len(rows), bool)
    kept = draw(table.keys(rows.tolist()), limit, seed)
    drawn[kept] = True
    return rows[kept], rows[~drawn]


def _refuse_without_classes(table: RowTable) -> None:
    """Refuse to even out classes that a template file of the user's own does not name."""
    without = [read.source.rows for read in table.sources if read.template.label_column is None]
    if without:
        raise DataError(
            f"the row template {without[0]} names no label_column, so there are no classes to even out",
            where="data.balance",
            hint="add label_column to the template, or delete the section",
        )


def _refuse_empty(data: Data, parts: Parts) -> None:
    for name, rows, wanted in (
        ("train", parts.train, True),
        ("validation", parts.validation, data.validation is not None),
        ("held_out", parts.held_out, True),
    ):
        if wanted and not len(rows):
            raise DataError(
                f"no rows are left for {name}", where=f"data.{name}", hint="raise the fraction, or bring more rows"
            )
