"""The report's account of the data: every row, lengths, turns, languages, labels, personal data, leaks."""

from __future__ import annotations

from finetune.audit_records import LEAKS, Audit, LeakCount, SourceAccount, TokenStatistics
from finetune.report_contents import Report
from finetune.report_figures import count, percent
from finetune.report_tables import Cell, Section, Table, facts_table, number

SHOWN_LEAKS = 20
"""Leaked samples that are listed one by one; all are counted."""


def data_section(report: Report) -> Section:
    """Return the account of every row, the lengths, labels and what stands twice."""
    audit = report.audit
    rows = sum(account.rows for account in audit.sources)
    sentences = (_leaks_sentence(audit), _masks_sentence(audit))
    tables = [
        _sources_table(audit.sources),
        _lengths_table(audit),
        facts_table("What the rows are like", _facts(audit)),
    ]
    counted = (
        ("Rows set aside", "reason", audit.set_aside_by_reason),
        ("Training rows by label", "label", audit.labels or {}),
        ("Languages of the training rows (a sample)", "language", audit.languages),
    )
    tables += [_counts_table(title, column, counts) for title, column, counts in counted if counts]
    if audit.private:
        tables.append(_private_table(audit))
    tables.append(_leaks_table(audit.leaks))
    if audit.leaked:
        tables.append(_leaked_table(audit))
    summary = f"{count(rows)} rows accounted for, {count(_leaked(audit))} scored samples found in training rows"
    return Section("Data", summary, sentences, tuple(tables))


def _leaked(audit: Audit) -> int:
    return sum(leak.exact + leak.normalized + leak.ngram + leak.near for leak in audit.leaks)


def _leaks_sentence(audit: Audit) -> str:
    samples = sum(leak.samples for leak in audit.leaks)
    removed = audit.set_aside_by_reason.get(LEAKS, 0)
    if _leaked(audit) == 0:
        return f"None of the {count(samples)} scored samples stands among the training rows."
    found = f"{count(_leaked(audit))} of the {count(samples)} scored samples stood among the training rows"
    return f"{found}; {count(removed)} training rows were set aside for it." if removed else f"{found}."


def _masks_sentence(audit: Audit) -> str:
    masks = audit.masks
    return (
        f"The masks of {count(masks.examples)} examples ({count(masks.tokens)} tokens) and {count(masks.probes)} probes"
        " were computed in a second, independent way; none differs."
    )


def _facts(audit: Audit) -> dict[str, str]:
    repetition = audit.repetition
    facts = {
        "longer than max_tokens": f"{count(audit.over_max_tokens)} rows"
        f" ({count(audit.truncated)} shortened, {count(audit.split)} split)",
        "turns of the training rows": ", ".join(f"{role} {count(turns)}" for role, turns in audit.turns.items()),
        "repeat an earlier training row": f"{count(repetition.exact)} word for word, {count(repetition.near)} nearly,"
        f" of {count(repetition.rows)}",
        "padding that packing would save": percent(audit.padding_saved),
        "rows per second, read and rendered": count(round(audit.rows_per_second)),
    }
    if audit.repeated:
        facts["rows repeated for mixing or balance"] = count(audit.repeated)
    if audit.copies:
        facts["altered copies"] = ", ".join(f"{kind} {count(copies)}" for kind, copies in audit.copies.items())
    if audit.copies_left_out:
        left_out = ", ".join(f"{reason} {count(copies)}" for reason, copies in audit.copies_left_out.items())
        facts["altered copies left out"] = left_out
    return facts


def _sources_table(accounts: tuple[SourceAccount, ...]) -> Table:
    columns = ("source", "rows", "train", "validation", "held out", "set aside", "over the limit", "sum")
    rows = tuple(
        (
            Cell(account.source),
            *(number(count(rows)) for rows in (account.rows, *_parts(account))),
            Cell(_balance(account)),
        )
        for account in accounts
    )
    return Table("Account of the rows", columns, rows, "Every row has exactly one use.")


def _parts(account: SourceAccount) -> tuple[int, ...]:
    return (account.train, account.validation, account.held_out, account.set_aside, account.over_limit)


def _balance(account: SourceAccount) -> str:
    missing = account.rows - sum(_parts(account))
    return "✓ adds up" if missing == 0 else f"✗ off by {count(abs(missing))}"


def _lengths_table(audit: Audit) -> Table:
    parts = [("train", audit.train)] + ([("validation", audit.validation)] if audit.validation else [])
    columns = ("part", "examples", "tokens", "trained", "shortest", "median", "90 %", "95 %", "99 %", "longest")
    return Table("Lengths in tokens", columns, tuple(_lengths(name, part) for name, part in parts))


def _lengths(name: str, part: TokenStatistics) -> tuple[Cell, ...]:
    figures = (
        part.examples, part.tokens, part.trained_tokens,
        part.shortest, part.median, part.percentile_90, part.percentile_95, part.percentile_99, part.longest,
    )  # fmt: skip
    return (Cell(name), *(number(count(figure)) for figure in figures))


def _counts_table(title: str, column: str, counts: dict[str, int]) -> Table:
    rows = tuple((Cell(name), number(count(rows))) for name, rows in _ordered(counts))
    return Table(title, (column, "rows"), rows)


def _private_table(audit: Audit) -> Table:
    rows = tuple((Cell(kind), number(count(places))) for kind, places in _ordered(audit.private))
    note = "Phone numbers in international form only: the recipe has no privacy.region."
    return Table("Personal data found", ("kind", "places"), rows, note if audit.only_international_phones else "")


def _ordered(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _leaks_table(leaks: tuple[LeakCount, ...]) -> Table:
    columns = ("task", "samples", "word for word", "but for spelling", "13 words in a row", "nearly", "share", "near")
    rows = tuple(
        (
            Cell(leak.task),
            *(number(count(n)) for n in (leak.samples, leak.exact, leak.normalized, leak.ngram, leak.near)),
            number(percent(leak.share)),
            number(percent(leak.near_share)),
        )
        for leak in leaks
    )
    return Table("Scored samples among the training rows", columns, rows, "Each sample by its strongest match.")


def _leaked_table(audit: Audit) -> Table:
    rows = tuple(
        (Cell(found.task), Cell(found.sample), Cell(found.train), Cell(found.kind), Cell(found.part))
        for found in audit.leaked[:SHOWN_LEAKS]
    )
    note = f"{count(len(rows))} of {count(_leaked(audit))} listed; report.json has up to a thousand."
    return Table(
        "Which samples, and the first training row", ("task", "sample", "training", "equal", "part"), rows, note
    )
