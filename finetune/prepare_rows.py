"""From the sources of a recipe to conversations, each for one purpose, and a reason for every row that has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.conversation import Conversation
from finetune.errors import DataError, nearest
from finetune.recipe_data import Data, HeldOutFraction, HeldOutSource, Source
from finetune.records import SetAside, SourceAccount
from finetune.row_templates import RowTemplate, RowUnusable, check_columns, load_row_template, to_conversation
from finetune.rows import BadRow, Row, read_rows, resolve_source, row_key
from finetune.splits import draw, split_by_fraction


@dataclass(frozen=True)
class UsableRow:
    """A row that became a conversation."""

    file: str
    line: int
    key: str
    """Hash of its columns."""
    group: str
    """What splits keep together."""
    conversation: Conversation
    template: RowTemplate

    @property
    def id(self) -> str:
        """Where the row stands."""
        return f"{self.file}:{self.line}"


@dataclass
class ReadSource:
    """A source read to its end; the purposes are filled in by `assign`."""

    source: Source
    sha256: str
    usable: list[UsableRow] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)


@dataclass
class Parts:
    """Rows by purpose."""

    train: list[UsableRow] = field(default_factory=list)
    validation: list[UsableRow] = field(default_factory=list)
    held_out: list[UsableRow] = field(default_factory=list)


def read_source(source: Source, group_column: str | None, cache: Path, announce: Callable[[str], None]) -> ReadSource:
    """Fetch a source, read every row, and turn each into a conversation or set it aside with the reason.

    Raises:
        DataError: the source cannot be read, or a column that the recipe names is in no row.
    """
    template = load_row_template(source.rows)
    check_columns(template, source.columns)
    resolved = resolve_source(source, cache, announce)
    read = ReadSource(source, resolved.sha256)
    for row in read_rows(source, resolved.path):
        if isinstance(row, BadRow):
            read.set_aside.append(SetAside(file=row.file, line=row.line, reason=row.reason, detail=row.detail))
            continue
        try:
            conversation = to_conversation(template, row.values, source.columns)
            group = _group(row, group_column)
        except RowUnusable as unusable:
            read.set_aside.append(
                SetAside(file=row.file, line=row.line, reason=unusable.reason, detail=unusable.detail)
            )
            continue
        read.usable.append(UsableRow(row.file, row.line, row_key(row), group, conversation, template))
    if not read.usable:
        raise DataError(_nothing_usable(read), where=source.source)
    return read


def assign(data: Data, sources: Sequence[ReadSource], held_out: ReadSource | None, seed: int) -> Parts:
    """Split the rows by group and apply the limits; what is assigned depends on content, never on order."""
    rows = [row for read in sources for row in read.usable]
    parts = Parts()
    if isinstance(data.held_out, HeldOutFraction):
        taken = split_by_fraction([row.group for row in rows], data.held_out.fraction, "held_out")
        parts.held_out = _limited([rows[i] for i in sorted(taken)], data.held_out.limit, seed)
        rows = [row for i, row in enumerate(rows) if i not in taken]
    elif held_out is not None:
        parts.held_out = _limited(held_out.usable, data.held_out.limit, seed)
    if data.validation is not None:
        taken = split_by_fraction([row.group for row in rows], data.validation.fraction, "validation")
        parts.validation = _limited([rows[i] for i in sorted(taken)], data.validation.limit, seed)
        rows = [row for i, row in enumerate(rows) if i not in taken]
    for read in sources:
        own = {id(row) for row in read.usable}
        parts.train += _limited([row for row in rows if id(row) in own], read.source.limit, seed)
    _refuse_empty(data, parts)
    return parts


def account(read: ReadSource, parts: Parts, set_aside: Sequence[SetAside]) -> SourceAccount:
    """Account for every row of a source; `set_aside` are all of the run, those of later steps among them."""
    own = {id(row) for row in read.usable}
    places = {(row.file, row.line) for row in read.usable} | {(a.file, a.line) for a in read.set_aside}
    counts = {name: sum(id(row) in own for row in rows) for name, rows in vars(parts).items()}
    aside = sum((a.file, a.line) in places for a in set_aside)
    total = len(read.usable) + len(read.set_aside)
    return SourceAccount(
        source=read.source.source,
        sha256=read.sha256,
        rows=total,
        train=counts["train"],
        validation=counts["validation"],
        held_out=counts["held_out"],
        set_aside=aside,
        over_limit=total - sum(counts.values()) - aside,
    )


def group_columns(data: Data) -> str | None:
    """Return the column that splits are made by.

    Raises:
        DataError: validation and held-out rows are split by different columns, so that a group could straddle.
    """
    by_validation = data.validation.by if data.validation else None
    by_held_out = data.held_out.by if isinstance(data.held_out, HeldOutFraction) else by_validation
    if data.validation and isinstance(data.held_out, HeldOutFraction) and by_validation != by_held_out:
        raise DataError(
            f"validation is split by {by_validation!r} and held-out rows by {by_held_out!r}",
            where="data.validation.by",
            hint="name the same column in both, so that no group stands on two sides",
        )
    return by_held_out


def held_out_source(data: Data) -> Source | None:
    """Return the source of the held-out rows, where they have one of their own."""
    return data.held_out if isinstance(data.held_out, HeldOutSource) else None


def _group(row: Row, column: str | None) -> str:
    if column is None:
        return row_key(row)
    if column not in row.values:
        raise DataError(
            f"there is no column {column!r} to split by",
            where=f"{row.file}:{row.line}",
            hint=nearest(column, row.values),
        )
    value = row.values[column]
    if value is None or value == "":
        raise RowUnusable("no_group", f"column {column!r} is empty, so the row's side of the split is not known")
    return str(value)


def _limited(rows: list[UsableRow], limit: int | None, seed: int) -> list[UsableRow]:
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i] for i in draw([row.key for row in rows], limit, seed)]


def _refuse_empty(data: Data, parts: Parts) -> None:
    for name, rows, wanted in (
        ("train", parts.train, True),
        ("validation", parts.validation, data.validation is not None),
        ("held_out", parts.held_out, True),
    ):
        if wanted and not rows:
            raise DataError(
                f"no rows are left for {name}",
                where=f"data.{name}",
                hint="raise the fraction, or bring more rows",
            )


def _nothing_usable(read: ReadSource) -> str:
    reasons = Counter(row.reason for row in read.set_aside).most_common(3)
    if not reasons:
        return "there are no rows in it"
    first = read.set_aside[0]
    named = ", ".join(f"{count} × {reason}" for reason, count in reasons)
    return f"none of its {len(read.set_aside)} rows can be used ({named}); line {first.line}: {first.detail}"
