"""From a source of a recipe to conversations on disk, and a reason for every row that became none.

What a source became is kept in the cache under the hash of everything it depends on, so that a source is read once.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, JsonValue

from evaluation.conversation import Conversation
from evaluation.files import (
    read_jsonl_lines,
    sha256_of_file,
    sha256_of_json,
    staged_folder,
    sweep_staging,
    write_jsonl,
    write_model,
    write_text,
)
from evaluation.overlap import normalized_for_overlap, prompt_text
from finetune.audit_records import SetAside
from finetune.cache import code_hash, locked, named_hash, rows_entry
from finetune.console import Reporter
from finetune.errors import DataError, nearest
from finetune.privacy import PrivacyScan
from finetune.recipe_data import Privacy, Source
from finetune.row_store import RowStore, StoredRow, write_rows
from finetune.row_templates import (
    RowTemplate,
    RowUnusable,
    check_columns,
    check_source_columns,
    load_row_template,
    to_conversation,
)
from finetune.rows import BadRow, Row, read_rows, resolve_source, row_key
from finetune.secret_patterns import refuse_secrets
from finetune.workers import bounded_chunks, count_workers, map_chunks

ROWS_A_CHUNK = 2000
"""Most rows that one process turns into conversations at a time."""
CHARACTERS_A_CHUNK = 4_000_000
"""From so many on, a chunk of fewer rows is full."""
LARGE_SOURCE_BYTES = 30_000_000
"""From this size of a source on, starting more processes costs less than it saves."""
SUMMARY, SUMMARY_HASH = "summary.json", "summary.sha256"
SECRET = "secret"
"""Reason code of rows that hold a password or a key."""


@dataclass(frozen=True)
class Collected:
    """A source read to its end."""

    source: Source
    template: RowTemplate
    sha256: str
    rows: RowStore
    set_aside: tuple[SetAside, ...]
    private: dict[str, int]
    """Kind of personal data → how often it was found."""
    seconds: float


@dataclass(frozen=True)
class RowSettings:
    """Everything that decides what a row becomes, beside the row."""

    template: RowTemplate
    columns: dict[str, str]
    group_column: str | None
    privacy: Privacy | None

    def fingerprint(self, source: Source, sha256: str) -> str:
        """Hash these settings with a source's name and content, and with the code that applies them."""
        return sha256_of_json(
            {
                "code": code_hash(),
                "source": source.source,
                "builder": source.builder,
                "sha256": sha256,
                "template": self.template.model_dump(mode="json"),
                "columns": dict(self.columns),
                "group": self.group_column,
                "privacy": self.privacy.model_dump(mode="json") if self.privacy else None,
            }
        )


class _Summary(BaseModel):
    """summary.json beside the collected rows: what they must still be like to be used again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows_sha256: str
    set_aside_sha256: str
    columns: tuple[str, ...]
    private: dict[str, int]


@dataclass
class _Tally:
    """What is counted while a source is read."""

    set_aside: list[SetAside] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    private: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Converted:
    """What a chunk of rows became."""

    rows: tuple[StoredRow, ...]
    set_aside: tuple[SetAside, ...]
    columns: frozenset[str]
    private: Counter[str]


def collect_source(
    source: Source, group_column: str | None, privacy: Privacy | None, cache: Path, reporter: Reporter
) -> Collected:
    """Fetch a source, read every row, and turn each into a conversation or set it aside with the reason.

    Raises:
        DataError: the source cannot be read, a column that the recipe names is in no row, or a row holds a secret.
    """
    began = time.perf_counter()
    template = load_row_template(source.rows)
    check_columns(template, source.columns)
    resolved = resolve_source(source, cache, reporter.say)
    settings = RowSettings(template, source.columns, group_column, privacy)
    entry = rows_entry(cache, settings.fingerprint(source, resolved.sha256))
    with locked(entry):
        summary = _load_summary(entry)
        if summary is None:
            summary = _build_entry(entry, settings, source, resolved.path, reporter)
    check_source_columns(template, source.columns, set(summary.columns), source.source)
    _check_group_column(group_column, summary.columns, source)
    set_aside = tuple(SetAside.model_validate_json(line) for _, line in read_jsonl_lines(entry / "set_aside.jsonl"))
    if privacy is None or privacy.secrets == "refuse":
        refuse_secrets([(row.file, row.line, row.detail) for row in set_aside if row.reason == SECRET])
    rows = RowStore(entry / "rows.arrow")
    if not len(rows):
        raise DataError(_nothing_usable(set_aside), where=source.source)
    return Collected(source, template, resolved.sha256, rows, set_aside, summary.private, time.perf_counter() - began)


def convert_rows(settings: RowSettings, rows: Sequence[Row | BadRow]) -> _Converted:
    """Turn rows into conversations or set them aside; pure, so that any process may do it."""
    scan = _privacy_scan(settings.privacy)
    usable: list[StoredRow] = []
    set_aside: list[SetAside] = []
    columns: set[str] = set()
    private: Counter[str] = Counter()
    for row in rows:
        if isinstance(row, BadRow):
            set_aside.append(SetAside(file=row.file, line=row.line, reason=row.reason, detail=row.detail))
            continue
        columns |= row.values.keys()
        try:
            scanned = scan.scan(to_conversation(settings.template, row.values, settings.columns))
            if scanned.secrets:
                raise RowUnusable(SECRET, ", ".join(scanned.secrets))
            group = _group(row, settings, scanned.conversation)
        except RowUnusable as unusable:
            aside = SetAside(file=row.file, line=row.line, reason=unusable.reason, detail=unusable.detail)
            set_aside.append(aside)
            continue
        private.update(scanned.counts)
        text = scanned.conversation.model_dump_json(exclude_defaults=True)
        usable.append(StoredRow(row.file, row.line, row_key(row), group, text))
    return _Converted(tuple(usable), tuple(set_aside), frozenset(columns), private)


def split_key(conversation: Conversation) -> str:
    """Return what a row without a group is split by: its question (its text, where there is none) in plain spelling.

    Rows that differ in case, spaces or punctuation alone never stand on two sides of a split.
    """
    text = normalized_for_overlap(prompt_text(conversation.prompt()))
    return sha256_of_json(text or normalized_for_overlap(conversation.answer()) or conversation.answer())


def _build_entry(entry: Path, settings: RowSettings, source: Source, location: Path, reporter: Reporter) -> _Summary:
    """Read the source once and write what it became, whole or not at all; its lock must be held."""
    sweep_staging(entry.parent, entry.name)  # a killed process may have left it
    tally = _Tally()
    workers = count_workers() if _size(location) >= LARGE_SOURCE_BYTES else 1
    with staged_folder(entry) as folder:
        with reporter.bar(f"read {source.source}", None) as advance:
            chunks = bounded_chunks(read_rows(source, location), ROWS_A_CHUNK, _characters_of, CHARACTERS_A_CHUNK)
            converted = map_chunks(functools.partial(convert_rows, settings), chunks, workers)
            write_rows(folder / "rows.arrow", _counted(converted, tally, advance))
        write_jsonl(folder / "set_aside.jsonl", tally.set_aside)
        summary = _Summary(
            rows_sha256=sha256_of_file(folder / "rows.arrow"),
            set_aside_sha256=sha256_of_file(folder / "set_aside.jsonl"),
            columns=tuple(sorted(tally.columns)),
            private=dict(tally.private),
        )
        write_model(folder / SUMMARY, summary)
        write_text(folder / SUMMARY_HASH, named_hash(folder / SUMMARY, entry.name))
    return summary


def _counted(converted: Iterator[_Converted], tally: _Tally, advance: Callable[[int], None]) -> Iterator[StoredRow]:
    for chunk in converted:
        tally.set_aside += chunk.set_aside
        tally.columns |= chunk.columns
        tally.private += chunk.private
        advance(len(chunk.rows) + len(chunk.set_aside))
        yield from chunk.rows


def _load_summary(entry: Path) -> _Summary | None:
    """Return the summary of an entry that is whole and unchanged."""
    try:
        if (entry / SUMMARY_HASH).read_text(encoding="utf-8") != named_hash(entry / SUMMARY, entry.name):
            return None
        summary = _Summary.model_validate_json((entry / SUMMARY).read_bytes())
        hashes = (sha256_of_file(entry / "rows.arrow"), sha256_of_file(entry / "set_aside.jsonl"))
    except (FileNotFoundError, ValueError):
        return None
    return summary if hashes == (summary.rows_sha256, summary.set_aside_sha256) else None


@functools.lru_cache(maxsize=8)
def _privacy_scan(privacy: Privacy | None) -> PrivacyScan:
    return PrivacyScan(privacy)


def _group(row: Row, settings: RowSettings, conversation: Conversation) -> str:
    """Return what splits keep together: a column's value, which is hashed where personal data is to be replaced."""
    column = settings.group_column
    if column is None:
        return split_key(conversation)
    value = row.values.get(column)
    if value is None or value == "":
        raise RowUnusable("no_group", f"column {column!r} is empty, so the row's side of the split is not known")
    hides = settings.privacy is not None and settings.privacy.action == "replace"
    return sha256_of_json(str(value)) if hides else str(value)


def _check_group_column(column: str | None, seen: Sequence[str], source: Source) -> None:
    if column is not None and column not in seen:
        raise DataError(f"there is no column {column!r} to split by", where=source.source, hint=nearest(column, seen))


def _nothing_usable(set_aside: Sequence[SetAside]) -> str:
    reasons = Counter(row.reason for row in set_aside).most_common(3)
    if not reasons:
        return "there are no rows in it"
    first = set_aside[0]
    named = ", ".join(f"{count} × {reason}" for reason, count in reasons)
    return f"none of its {len(set_aside)} rows can be used ({named}); line {first.line}: {first.detail}"


def _characters_of(row: Row | BadRow) -> int:
    return _characters(list(row.values.values())) if isinstance(row, Row) else 0


def _characters(value: JsonValue) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_characters, value)) if isinstance(value, list) else 1


def _size(location: Path) -> int:
    files = [location] if location.is_file() else [path for path in location.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)
