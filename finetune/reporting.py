"""The report stage: gathers what the other stages wrote in a run, and writes the report from it."""

from __future__ import annotations

from evaluation.comparison import differences
from evaluation.result_files import load_result
from evaluation.runner import Scored
from evaluation.task import LoadedTask
from evaluation.task_file import load_task
from finetune.audit_records import Audit
from finetune.merge_records import MERGE_FILE, MergeProof
from finetune.recipe import Recipe
from finetune.records import Environment
from finetune.report import ReportInputs, TaskScores, build_report, write_report
from finetune.run_directory import HELD_OUT_TASK, RunDirectory
from finetune.training_records import StepMetrics, TrainingSummary

ORDER = ("base", "adapter", "merged", "merged_nf4", "merged_int8", "majority", "tfidf")
"""Contenders as the report shows them."""


def report_run(recipe: Recipe, run: RunDirectory, command: str) -> str:
    """Write report.html, report.md and report.json of a run whose other stages are finished; return the verdict."""
    metrics = (run.training / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    inputs = ReportInputs(
        recipe=recipe,
        command=command,
        audit=Audit.model_validate_json((run.data / "audit.json").read_bytes()),
        steps=tuple(StepMetrics.model_validate_json(line) for line in metrics),
        training=TrainingSummary.model_validate_json((run.training / "summary.json").read_bytes()),
        merge=MergeProof.model_validate_json((run.merged / MERGE_FILE).read_bytes()),
        environment=Environment.model_validate_json(run.environment.read_bytes()),
        stages=run.stage_times(("prepare", "train", "merge", "evaluate")),
        tasks=tuple(_task_scores(name, run, recipe.seed) for name in recipe.evaluation.tasks),
    )
    report = build_report(inputs)
    write_report(report, run.folder)
    return report.verdict.sentence()


def _task_scores(name: str, run: RunDirectory, seed: int) -> TaskScores:
    loaded = load_task(str(run.data / "held_out.task.yaml") if name == HELD_OUT_TASK else name)
    scored = _load_scored(loaded, run)
    others = [found for contender, found in scored.items() if contender != "base"]
    against = tuple(d for other in others for d in differences(other, scored["base"], seed)) if "base" in scored else ()
    return TaskScores(
        task=loaded.task.name,
        description=loaded.task.description,
        kind=loaded.task.kind,
        results={contender: found.result for contender, found in scored.items()},
        outputs={contender: found.outputs for contender, found in scored.items()},
        differences=against,
    )


def _load_scored(loaded: LoadedTask, run: RunDirectory) -> dict[str, Scored]:
    present = [name for name in ORDER if (run.evaluation / name / f"{loaded.task.name}.json").exists()]
    return {name: Scored(*load_result(run.evaluation, name, loaded.task.name)) for name in present}
