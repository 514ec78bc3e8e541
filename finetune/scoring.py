"""The evaluation stage: every contender on the same held-out samples, with the lower package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluation.baselines import classical_answers, question_text
from evaluation.files import read_jsonl_lines, staged_folder
from evaluation.inference import load_language_model
from evaluation.model import ModelSpec
from evaluation.result_files import write_result
from evaluation.results import Identity
from evaluation.runner import Scored, count_steps, installed_versions, score, score_classical
from evaluation.task import LoadedTask, Sample
from evaluation.task_file import load_task
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.recipe import Recipe
from finetune.run_directory import HELD_OUT_TASK, RunDirectory

CLASSICAL: tuple[Literal["majority", "tfidf"], ...] = ("majority", "tfidf")
"""The two baselines that stand for `baseline` in a recipe."""


@dataclass(frozen=True)
class Contender:
    """A model that is scored."""

    name: str
    spec: ModelSpec
    model_sha256: str
    adapter_sha256: str | None = None


def score_contenders(recipe: Recipe, run: RunDirectory, models: Sequence[Contender], reporter: Reporter) -> None:
    """Score the recipe's contenders on its tasks and write evaluation/."""
    tasks = [_load(name, run) for name in recipe.evaluation.tasks]
    wanted = recipe.evaluation.contenders
    found: dict[str, dict[str, Scored]] = {loaded.task.name: {} for loaded in tasks}
    with staged_folder(run.evaluation) as folder:
        for contender in models:
            if wanted is not None and contender.name not in wanted:
                continue
            with reporter.bar(f"score {contender.name}", sum(count_steps(loaded) for loaded in tasks)) as advance:
                model = load_language_model(contender.spec)
                for loaded in tasks:
                    scored = score(model, loaded, _identity(contender, loaded, recipe.seed), advance)
                    _record(folder, scored, found)
                del model
        if wanted is None or "baseline" in wanted:
            _refuse_baseline_without_classes(tasks, wanted)
            for scored in _score_baselines(tasks, run, recipe.seed):
                _record(folder, scored, found)
    for loaded in tasks:
        _say(loaded, found[loaded.task.name], reporter)


def _record(folder: Path, scored: Scored, found: dict[str, dict[str, Scored]]) -> None:
    written = Scored(write_result(folder, scored.result, scored.outputs), scored.outputs)
    found[scored.result.task][scored.result.identity.contender] = written


def _load(name: str, run: RunDirectory) -> LoadedTask:
    return load_task(str(run.data / "held_out.task.yaml") if name == HELD_OUT_TASK else name)


def _identity(contender: Contender, loaded: LoadedTask, seed: int) -> Identity:
    quantization = contender.spec.quantization
    return Identity(
        contender=contender.name,
        model_sha256=contender.model_sha256,
        adapter_sha256=contender.adapter_sha256,
        quantization=str(quantization) if quantization else None,
        dtype=contender.spec.dtype,
        task_sha256=loaded.sha256,
        seed=seed,
        versions=installed_versions(),
    )


def _refuse_baseline_without_classes(tasks: Sequence[LoadedTask], wanted: Sequence[str] | None) -> None:
    if wanted is not None and not any(loaded.task.kind == "choose" for loaded in tasks):
        raise DataError(
            "a baseline is asked for, and the held-out rows have no classes",
            where="evaluation.contenders",
            hint="leave `baseline` out, or use a row template with a label_column",
        )


def _score_baselines(tasks: Sequence[LoadedTask], run: RunDirectory, seed: int) -> list[Scored]:
    """Score the classical baselines, fitted on the rows that the adapter saw, on the held-out rows."""
    held_out = next((loaded for loaded in tasks if loaded.task.name == HELD_OUT_TASK), None)
    if held_out is None or held_out.task.kind != "choose":
        return []
    rows = [Sample.model_validate_json(line) for _, line in read_jsonl_lines(run.data / "train.jsonl")]
    pairs = [(question_text(row.prompt), row.reference) for row in rows]
    questions = [question_text(sample.prompt) for sample in held_out.samples]
    scored = []
    for name in CLASSICAL:
        identity = Identity(
            contender=name,
            model_sha256=None,
            task_sha256=held_out.sha256,
            seed=seed,
            versions=installed_versions(),
        )
        scored.append(score_classical(classical_answers(name, pairs, questions), held_out, identity))
    return scored


def _say(loaded: LoadedTask, scored: dict[str, Scored], reporter: Reporter) -> None:
    for name, contender in scored.items():
        figures = "  ".join(
            f"{metric} {estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
            for metric, estimate in list(contender.result.metrics.items())[:2]
        )
        reporter.say(f"  {loaded.task.name}: {name:9} {figures}  n={len(loaded.samples)}")
