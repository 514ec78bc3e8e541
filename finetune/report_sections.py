"""The folded part of a report: data, merge, training, machine, hashes; sentences and tables each."""

from __future__ import annotations

from finetune.loss_watch import told_divergence, told_plateau
from finetune.report_contents import Report
from finetune.report_data import data_section
from finetune.report_figures import count, duration, memory, percent
from finetune.report_tables import Cell, Section, Table, facts_table, number, validation_table
from finetune.training_records import MemorySetting, TrainingSummary


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
        **({"gone on with after step": ", ".join(map(count, summary.resumed_after))} if summary.resumed_after else {}),
        "peak memory": memory(summary.peak_memory_bytes),
        "device": f"{summary.device} × {summary.devices}",
        "trainable parameters": f"{count(summary.trainable_parameters)} "
        f"({percent(summary.trainable_parameters / summary.base_parameters)} of the base)",
        "parameters of the base": count(summary.base_parameters),
        **summary.choices,
        "memory": _memory_setting(summary.memory),
        "loss curve": _loss_curve(summary),
    }
    tables = [facts_table("Training", facts)]
    if any(step.validation_loss is not None for step in report.steps):
        tables.append(validation_table(report))
    line = f"{count(summary.steps)} steps, {count(summary.tokens)} tokens, {duration(summary.seconds)}"
    return Section("Training", line, (_RESUMED,) if summary.resumed_after else (), tuple(tables))


_RESUMED = (
    "Training was interrupted and went on from a checkpoint; steps, tokens and time are those of all of it, without"
    " what was computed after a checkpoint and then again."
)


def _memory_setting(setting: MemorySetting) -> str:
    if setting.tokens_per_micro_batch is None and not setting.gradient_checkpointing:
        return "batches as planned"
    cut = (
        f"micro-batches cut to {count(setting.tokens_per_micro_batch)} tokens" if setting.tokens_per_micro_batch else ""
    )
    checkpointing = "gradient checkpointing switched on" if setting.gradient_checkpointing else ""
    return f"it ran out: {', '.join(filter(None, (cut, checkpointing)))}; each step has its rows"


def _loss_curve(summary: TrainingSummary) -> str:
    told = [told_divergence(summary.divergence)] if summary.divergence else []
    told += [told_plateau(summary.plateau)] if summary.plateau else []
    return "; ".join(told) or "neither a divergence nor a plateau"


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
        facts_table("Machine", machine),
        facts_table("Versions", environment.versions),
    )
    return Section("Time, machine and versions", f"{total} on {environment.device}", (), tables)


def fingerprints_section(report: Report) -> Section:
    """Return the hashes of everything that the result depends on."""
    rows = tuple((Cell(item.what), Cell(item.sha256)) for item in report.fingerprints)
    table = Table("Hashes", ("what", "SHA-256"), rows)
    return Section("Hashes", f"{count(len(rows))} inputs and outputs", (), (table,))
