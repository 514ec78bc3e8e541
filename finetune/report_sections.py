"""The folded part of a report: data, merge, training, machine, hashes; sentences and tables each."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.records import SourceAccount, TokenStatistics
from finetune.report_contents import Report
from finetune.report_figures import count, duration, memory, percent
from finetune.report_tables import Cell, Table, number, validation_table

SHOWN_DUPLICATES = 20
"""Duplicates that are listed one by one; all are counted."""


@dataclass(frozen=True)
class Section:
    """One thing to unfold: its summary is read without opening it."""

    title: str
    summary: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]


def folded_sections(report: Report) -> tuple[Section, ...]:
    """Return the folded sections in reading order."""
    return (
        data_section(report),
        merge_section(report),
        training_section(report),
        machine_section(report),
        fingerprints_section(report),
    )


def mask_sentence(report: Report) -> str:
    """Say how many tokens are trained on."""
    train = report.audit.train
    share = percent(train.trained_tokens / train.tokens) if train.tokens else "none"
    return (
        f"{count(train.trained_tokens)} of {count(train.tokens)} tokens ({share}) of the "
        f"{count(train.examples)} training examples are trained on."
    )


def data_section(report: Report) -> Section:
    """Return the account of every row, the lengths, labels and duplicates."""
    audit = report.audit
    rows = sum(account.rows for account in audit.sources)
    sentences = [_duplicates_sentence(report)]
    if audit.truncated:
        sentences.append(f"The prompt of {count(audit.truncated)} examples was shortened to fit.")
    tables = [_sources_table(audit.sources), _lengths_table(report)]
    if audit.set_aside_by_reason:
        tables.append(_counts_table("Rows set aside", "reason", audit.set_aside_by_reason))
    if audit.labels:
        tables.append(_counts_table("Training rows by label", "label", audit.labels))
    if audit.duplicates:
        tables.append(_duplicates_table(report))
    repeated = len({duplicate.held_out for duplicate in audit.duplicates})
    summary = f"{count(rows)} rows accounted for, {count(repeated)} held-out rows also in training"
    return Section("Data", summary, tuple(sentences), tuple(tables))


def merge_section(report: Report) -> Section:
    """Return every figure of the merge proof."""
    proof = report.merge
    passed = sum(check.holds is True for check in report.merge_checks)
    limits = sum(check.holds is not None for check in report.merge_checks)
    rows = tuple(
        (
            Cell(check.name, check.meaning),
            number(check.value),
            number(check.limit or "–"),
            Cell("–" if check.holds is None else "✓ holds" if check.holds else "✗ does not hold"),
        )
        for check in report.merge_checks
    )
    note = f"n = {count(proof.probe_tokens)} answer tokens of {count(proof.probe_rows)} rows."
    table = Table("Merge proof", ("figure", "value", "limit", ""), rows, note)
    sentence = (
        f"The adapter was folded into the {proof.onto.replace('_', ' ')} weights and saved as {proof.dtype}, "
        f"in {duration(proof.seconds)}."
    )
    return Section("Merge", f"{passed} of {limits} checks hold", (sentence,), (table,))


def training_section(report: Report) -> Section:
    """Return what was trained, how long, and the validation losses."""
    summary = report.training
    facts = {
        "steps": count(summary.steps),
        "kept step": count(summary.kept_step),
        "examples": count(summary.examples),
        "tokens without padding": count(summary.tokens),
        "tokens trained on": count(summary.trained_tokens),
        "tokens per second": count(round(summary.tokens_per_second)),
        "time": duration(summary.seconds),
        "peak memory": memory(summary.peak_memory_bytes),
        "device": f"{summary.device} × {summary.devices}",
        "trainable parameters": f"{count(summary.trainable_parameters)} "
        f"({percent(summary.trainable_parameters / summary.base_parameters)} of the base)",
        "parameters of the base": count(summary.base_parameters),
        **summary.choices,
    }
    tables = [_facts_table("Training", facts)]
    if any(step.validation_loss is not None for step in report.steps):
        tables.append(validation_table(report))
    line = f"{count(summary.steps)} steps, {count(summary.tokens)} tokens, {duration(summary.seconds)}"
    return Section("Training", line, (), tuple(tables))


def machine_section(report: Report) -> Section:
    """Return time and memory of each stage, the machine and the versions."""
    environment = report.environment
    rows = tuple(
        (Cell(time.stage), number(duration(time.seconds)), number(memory(time.peak_memory_bytes)))
        for time in report.stages
    )
    machine = {
        "device": environment.device,
        "processor": environment.processor,
        "processors": count(environment.cpu_count),
        "torch threads": count(environment.torch_threads),
        "memory": memory(environment.memory_bytes),
        "platform": environment.platform,
        "Python": environment.python,
    }
    total = duration(sum(time.seconds for time in report.stages))
    tables = (
        Table("Stages", ("stage", "time", "peak memory"), rows),
        _facts_table("Machine", machine),
        _facts_table("Versions", environment.versions),
    )
    return Section("Time, machine and versions", f"{total} on {environment.device}", (), tables)


def fingerprints_section(report: Report) -> Section:
    """Return the hashes of everything that the result depends on."""
    rows = tuple((Cell(item.what), Cell(item.sha256)) for item in report.fingerprints)
    table = Table("Hashes", ("what", "SHA-256"), rows)
    return Section("Hashes", f"{count(len(rows))} inputs and outputs", (), (table,))


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


def _lengths_table(report: Report) -> Table:
    audit = report.audit
    parts = [("train", audit.train)] + ([("validation", audit.validation)] if audit.validation else [])
    columns = ("part", "examples", "tokens", "trained", "shortest", "median", "95th percentile", "longest")
    return Table("Lengths in tokens", columns, tuple(_lengths(name, part) for name, part in parts))


def _lengths(name: str, part: TokenStatistics) -> tuple[Cell, ...]:
    figures = (
        part.examples, part.tokens, part.trained_tokens,
        part.shortest, part.median, part.percentile_95, part.longest,
    )  # fmt: skip
    return (Cell(name), *(number(count(figure)) for figure in figures))


def _counts_table(title: str, column: str, counts: dict[str, int]) -> Table:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = tuple((Cell(name), number(count(rows))) for name, rows in ordered)
    return Table(title, (column, "rows"), rows)


def _facts_table(title: str, facts: dict[str, str]) -> Table:
    return Table(title, ("", ""), tuple((Cell(name), Cell(fact)) for name, fact in facts.items()))


def _duplicates_sentence(report: Report) -> str:
    found, samples = len(report.audit.duplicates), report.audit.held_out_samples
    if found == 0:
        return f"None of the {count(samples)} held-out samples stands among the training rows."
    return f"{count(found)} matches between the {count(samples)} held-out samples and the training rows."


def _duplicates_table(report: Report) -> Table:
    duplicates = report.audit.duplicates
    rows = tuple(
        (Cell(found.held_out), Cell(found.train), Cell(found.kind), Cell(found.part))
        for found in duplicates[:SHOWN_DUPLICATES]
    )
    note = f"{count(len(rows))} of {count(len(duplicates))} listed; report.json has all."
    return Table("Held-out rows among the training rows", ("held out", "training", "equal", "part"), rows, note)
