"""The report stage: what the other stages wrote becomes one value, and that value one page in three forms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evaluation.files import write_model, write_text
from evaluation.results import Difference, Output, Result
from evaluation.task import TaskKind
from finetune.audit_records import Audit
from finetune.merge_records import MergeProof
from finetune.privacy_shown import ShownTexts
from finetune.recipe import Recipe
from finetune.records import Environment, StageTime
from finetune.report_contents import (
    HEADLINE,
    SECOND,
    Answer,
    Changes,
    ContenderScores,
    Fingerprint,
    Report,
    SamplePair,
    TaskReport,
)
from finetune.report_figures import legible
from finetune.report_html import render_html
from finetune.report_markdown import render_markdown
from finetune.report_proof import merge_checks
from finetune.report_verdict import build_verdict
from finetune.training_records import StepMetrics, TrainingSummary

SHOWN_SAMPLES = 10
"""Held-out samples shown side by side."""
SHOWN_CHARACTERS = 2000
"""Characters shown of a prompt, reference or answer."""


@dataclass(frozen=True)
class TaskScores:
    """Everything that scoring left behind for one task; contenders in the order they are to be shown."""

    task: str
    description: str
    kind: TaskKind
    results: dict[str, Result]
    outputs: dict[str, tuple[Output, ...]]
    differences: tuple[Difference, ...]
    """Paired, against the base."""


@dataclass(frozen=True)
class ReportInputs:
    """What the stages of a run wrote; the first task is the held-out one."""

    recipe: Recipe
    command: str
    audit: Audit
    steps: tuple[StepMetrics, ...]
    training: TrainingSummary
    merge: MergeProof
    environment: Environment
    stages: tuple[StageTime, ...]
    tasks: tuple[TaskScores, ...]


def build_report(inputs: ReportInputs) -> Report:
    """Select and judge what is shown; pure, so the same run always gives the same report."""
    assert inputs.tasks, "a run always scores the held-out task"
    tasks = tuple(_task(scores) for scores in inputs.tasks)
    return Report(
        name=inputs.recipe.name,
        description=inputs.recipe.description,
        verdict=build_verdict(tasks),
        command=inputs.command,
        seed=inputs.recipe.seed,
        tasks=tasks,
        samples=_samples(inputs.tasks[0], ShownTexts(inputs.recipe.privacy)),
        steps=inputs.steps,
        audit=inputs.audit,
        training=inputs.training,
        merge=inputs.merge,
        merge_checks=merge_checks(inputs.merge, inputs.recipe.merge),
        stages=inputs.stages,
        environment=inputs.environment,
        fingerprints=_fingerprints(inputs),
        recipe=inputs.recipe,
    )


def write_report(report: Report, folder: Path) -> None:
    """Write report.html, report.md and report.json, each whole or not at all."""
    write_text(folder / "report.html", render_html(report))
    write_text(folder / "report.md", render_markdown(report))
    write_model(folder / "report.json", report)


def _task(scores: TaskScores) -> TaskReport:
    rows = tuple(
        ContenderScores(
            contender=contender,
            metrics=result.metrics,
            seconds=result.seconds,
            model_sha256=result.identity.model_sha256,
        )
        for contender, result in scores.results.items()
    )
    second = SECOND[scores.kind]
    return TaskReport(
        name=scores.task,
        description=scores.description,
        kind=scores.kind,
        headline=HEADLINE[scores.kind],
        second=second if any(second in row.metrics for row in rows) else None,
        contenders=rows,
        differences=scores.differences,
        changes=_changes(scores),
        task_sha256=next(iter(scores.results.values())).identity.task_sha256,
    )


def _tuned(scores: TaskScores) -> str | None:
    return next((name for name in ("adapter", "merged") if scores.outputs.get(name)), None)


def _changes(scores: TaskScores) -> Changes | None:
    tuned = _tuned(scores)
    if tuned is None or "base" not in scores.outputs:
        return None
    right_before = {output.sample: _right(output, scores.kind) for output in scores.outputs["base"]}
    right_after = {output.sample: _right(output, scores.kind) for output in scores.outputs[tuned]}
    pairs = [(right_before[sample], right_after[sample]) for sample in right_after if sample in right_before]
    if not pairs or any(None in pair for pair in pairs):
        return None
    return Changes(
        tuned=tuned,
        both_right=pairs.count((True, True)),
        gained=pairs.count((False, True)),
        lost=pairs.count((True, False)),
        both_wrong=pairs.count((False, False)),
    )


def _samples(scores: TaskScores, show: ShownTexts) -> tuple[SamplePair, ...]:
    shown = [name for name in ("base", _tuned(scores)) if name is not None and scores.outputs.get(name)]
    if not shown:
        return ()
    by_sample = [{output.sample: output for output in scores.outputs[name]} for name in shown]
    common = [sample for sample in by_sample[0] if all(sample in outputs for outputs in by_sample)]
    return tuple(
        _pair([(name, outputs[sample]) for name, outputs in zip(shown, by_sample, strict=True)], scores.kind, show)
        for sample in _spread(common, SHOWN_SAMPLES)
    )


def _pair(answers: list[tuple[str, Output]], kind: TaskKind, show: ShownTexts) -> SamplePair:
    output = answers[0][1]
    said = [output.chosen if output.generated is None else output.generated for _, output in answers]
    prompt, reference, *texts = show.texts([output.prompt, output.reference, *(text or "" for text in said)])
    return SamplePair(
        sample=output.sample,
        prompt=legible(prompt, SHOWN_CHARACTERS),
        reference=legible(reference, SHOWN_CHARACTERS),
        answers=tuple(
            _answer(contender, output, None if words is None else text, kind)
            for (contender, output), words, text in zip(answers, said, texts, strict=True)
        ),
    )


def _answer(contender: str, output: Output, said: str | None, kind: TaskKind) -> Answer:
    loss_per_token = (
        output.reference_nll / output.reference_tokens
        if output.reference_nll is not None and output.reference_tokens
        else None
    )
    return Answer(
        contender=contender,
        text=None if said is None else legible(said, SHOWN_CHARACTERS),
        right=_right(output, kind),
        score=loss_per_token if kind == "token_loss" else output.scores.get(HEADLINE[kind]),
    )


def _right(output: Output, kind: TaskKind) -> bool | None:
    score = output.scores.get(HEADLINE[kind])
    return None if score is None or kind != "choose" else score == 1.0


def _spread(samples: list[str], limit: int) -> list[str]:
    # By position alone, first and last included: a choice by result could flatter.
    if len(samples) <= limit:
        return samples
    return [samples[index * (len(samples) - 1) // (limit - 1)] for index in range(limit)]


def _fingerprints(inputs: ReportInputs) -> tuple[Fingerprint, ...]:
    pairs: list[tuple[str, str | None]] = [("base as the recipe names it", inputs.recipe.base.sha256)]
    base = inputs.tasks[0].results.get("base")
    pairs.append(("base as scored", base.identity.model_sha256 if base else None))
    pairs.append(("adapter", inputs.training.adapter_sha256))
    pairs.append(("merged model", inputs.merge.merged_sha256))
    pairs.append(("tokenizer", inputs.audit.tokenizer_sha256))
    pairs.append(("chat template", inputs.audit.template_sha256))
    pairs.extend((f"data: {account.source}", account.sha256) for account in inputs.audit.sources)
    for scores in inputs.tasks:
        pairs.append((f"task: {scores.task}", next(iter(scores.results.values())).identity.task_sha256))
    return tuple(Fingerprint(what=what, sha256=sha256) for what, sha256 in pairs if sha256)
