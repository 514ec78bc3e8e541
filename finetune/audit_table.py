"""The audit of the data stage as a table for a terminal."""

from __future__ import annotations

from rich.table import Table

from finetune.audit_records import LEAKS, Audit, LeakCount

SHOWN_REASONS = 8
"""Reasons for setting rows aside that the table lists; audit.json has all."""
SHOWN_NAMES = 6
"""Languages and labels that the table lists."""


def audit_table(audit: Audit) -> Table:
    """Lay the audit out for a terminal: the account of the rows first, then what they are like."""
    table = Table(title="Audit of the data", show_header=False, box=None, title_justify="left", padding=(0, 2, 0, 0))
    for name, text in _lines(audit):
        table.add_row(f"[bold]{name}[/]", text)
    return table


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _lines(audit: Audit) -> list[tuple[str, str]]:
    rows = sum(source.rows for source in audit.sources)
    aside = sum(audit.set_aside_by_reason.values())
    left = sum(source.over_limit for source in audit.sources)
    used = rows - aside - left
    validation = audit.validation.examples if audit.validation else 0
    train = audit.train
    lines = [
        ("rows", f"{rows:,} in = {used:,} used + {aside:,} set aside + {left:,} over a limit"),
        ("set aside", _named(audit.set_aside_by_reason, SHOWN_REASONS) or "none"),
        ("examples", f"{train.examples:,} training, {validation:,} validation, {audit.held_out_samples:,} held out"),
        (
            "tokens",
            f"median {train.median:,}, 90 % {train.percentile_90:,}, 99 % {train.percentile_99:,}, longest"
            f" {train.longest:,}; {train.trained_tokens / train.tokens:.1%} of {train.tokens:,} trained on",
        ),
        ("too long", f"{_count(audit.over_max_tokens, 'row')} ({audit.truncated:,} shortened, {audit.split:,} split)"),
        ("packing", f"would save {audit.padding_saved:.1%} of the computed tokens"),
        ("turns", _named(audit.turns, SHOWN_NAMES)),
        ("languages", _named(audit.languages, SHOWN_NAMES)),
        (
            "repeated",
            f"{_count(audit.repetition.exact, 'training row')} word for word, {audit.repetition.near:,} nearly",
        ),
        ("masks", f"{audit.masks.examples:,} computed twice, {audit.masks.tokens:,} tokens, none differs"),
    ]
    if audit.labels:
        lines.insert(7, ("labels", f"{len(audit.labels)}: {_named(audit.labels, SHOWN_NAMES)}"))
    if audit.copies or audit.repeated:
        lines.append(
            ("added", f"{audit.repeated:,} repeated rows; altered copies: {_named(audit.copies, 9) or 'none'}")
        )
    if audit.copies_left_out:
        lines.append(("copies left out", _named(audit.copies_left_out, SHOWN_REASONS)))
    if audit.private:
        lines.append(("personal data", _private_line(audit)))
    lines += [(f"leaks: {leak.task}", _leak_line(leak)) for leak in audit.leaks]
    removed = audit.set_aside_by_reason.get(LEAKS, 0)
    if removed:
        lines.append(("taken out", f"{_count(removed, 'training row')}, for a leak each"))
    return lines


def _private_line(audit: Audit) -> str:
    found = {kind: count for kind, count in audit.private.items() if count}
    said = _named(found, SHOWN_NAMES) or "none found"
    only = " (phone numbers in international form only: set privacy.region)"
    return said + (only if audit.only_international_phones else "")


def _leak_line(leak: LeakCount) -> str:
    found = {
        "word for word": leak.exact,
        "but for spelling": leak.normalized,
        "13 words": leak.ngram,
        "near": leak.near,
    }
    named = _named({name: count for name, count in found.items() if count}, len(found))
    return f"{named or 'none'} of {leak.samples:,} samples found in training rows"


def _named(counts: dict[str, int], most: int) -> str:
    """List the largest counts, and how many names are left out."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = len(ordered) - most
    shown = ", ".join(f"{name} {count:,}" for name, count in ordered[:most])
    return shown + (f", and {rest} more" if rest > 0 else "")
