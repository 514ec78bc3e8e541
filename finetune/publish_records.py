"""What a published folder says of its run, without paths and rows: recipe, figures, account of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from evaluation.files import write_model, write_text
from finetune.audit_records import Audit
from finetune.merge_records import MergeProof
from finetune.publish_manifest import PublishedScore
from finetune.pypi import PYPI_PREFIX
from finetune.recipe import Recipe
from finetune.recipe_data import HeldOutSource, Source
from finetune.recipe_written import spell_out
from finetune.records import Environment, StageTime
from finetune.report_contents import Fingerprint, MergeCheck, Report, TaskReport, Verdict
from finetune.rows import HUB_PREFIX
from finetune.run_lock import Lock
from finetune.training_records import TrainingSummary

RECIPE_FILE, RESULTS_FILE, DATA_FILE = "recipe.yaml", "results.json", "data.json"
FROM_HUB = "the Hugging Face hub"
"""How `recipe.lock.json` begins to say that a base came from there."""

_Source = TypeVar("_Source", bound=Source)


class Results(BaseModel):
    """results.json: every figure of the report with its interval and n, and what it depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings")

    name: str
    verdict: Verdict
    seed: int
    versions: dict[str, str]
    tasks: tuple[TaskReport, ...]
    training: TrainingSummary
    merge: MergeProof
    merge_checks: tuple[MergeCheck, ...]
    stages: tuple[StageTime, ...]
    environment: Environment
    fingerprints: tuple[Fingerprint, ...]


def published_report(report: Report, lock: Lock) -> Report:
    """Return a report without rows, and with files named by their last part alone."""
    return report.model_copy(
        update={
            "command": f"finetune run {RECIPE_FILE}",
            "samples": (),
            "audit": _published_audit(report.audit),
            "fingerprints": tuple(
                one.model_copy(update={"what": _named_by_file(one.what)}) for one in report.fingerprints
            ),
            "recipe": published_recipe(report.recipe, lock),
            "merge": report.merge.model_copy(update={"files": {}}),  # merge.json lists them as they are published
        }
    )


def published_recipe(recipe: Recipe, lock: Lock) -> Recipe:
    """Return the recipe with every local file named by its last part, and its hash beside it."""
    data = recipe.data
    held_out = data.held_out
    return recipe.model_copy(
        update={
            "base": recipe.base.model_copy(update=_base_fields(recipe, lock)),
            "data": data.model_copy(
                update={
                    "train": tuple(_published_source(source, lock) for source in data.train),
                    "held_out": _published_source(held_out, lock) if isinstance(held_out, HeldOutSource) else held_out,
                }
            ),
            "evaluation": recipe.evaluation.model_copy(
                update={"tasks": tuple(_last_part(task) for task in recipe.evaluation.tasks)}
            ),
        }
    )


def write_records(folder: Path, report: Report, lock: Lock) -> None:
    """Write recipe.yaml, results.json and data.json from a report that `published_report` has made."""
    write_text(folder / RECIPE_FILE, spell_out(report.recipe))
    results = Results(
        name=report.name,
        verdict=report.verdict,
        seed=report.seed,
        versions=lock.versions,
        tasks=report.tasks,
        training=report.training,
        merge=report.merge,
        merge_checks=report.merge_checks,
        stages=report.stages,
        environment=report.environment,
        fingerprints=report.fingerprints,
    )
    write_model(folder / RESULTS_FILE, results)
    write_model(folder / DATA_FILE, report.audit)


def published_scores(report: Report) -> tuple[PublishedScore, ...]:
    """List every finite figure of every contender on every task."""
    return scores_of(report.tasks)


def scores_of(tasks: Sequence[TaskReport]) -> tuple[PublishedScore, ...]:
    """List every finite figure of every contender on some tasks."""
    return tuple(
        PublishedScore(
            task=task.name,
            contender=row.contender,
            metric=metric,
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            samples=estimate.n,
        )
        for task in tasks
        for row in task.contenders
        for metric, estimate in row.metrics.items()
        if all(math.isfinite(figure) for figure in (estimate.value, estimate.low, estimate.high))
    )


def shown_source(name: str) -> str:
    """Name a source of rows for others: a local file by its last part."""
    return name if name.startswith((PYPI_PREFIX, HUB_PREFIX)) else _last_part(name)


def base_name(lock: Lock) -> tuple[str, str | None]:
    """Name the base for others: id and commit, or the last part of a local path."""
    name, _, commit = lock.base.partition("@")
    if lock.base_origin.startswith(FROM_HUB):
        return name, commit or None
    return (lock.base, None) if lock.base.startswith(PYPI_PREFIX) else (_last_part(lock.base), None)


def _base_fields(recipe: Recipe, lock: Lock) -> dict[str, str | None]:
    name, commit = base_name(lock)
    template = recipe.base.chat_template
    # The stated hash of a GGUF file is that of the file, of a folder that of all its files.
    local_folder = lock.base_origin.startswith("a local folder")
    return {
        "model": name,
        "revision": commit,
        "sha256": lock.base_sha256 if local_folder and template is None else recipe.base.sha256,
        "chat_template": _last_part(template) if template else None,
    }


def _published_source(source: _Source, lock: Lock) -> _Source:
    return source.model_copy(
        update={
            "source": shown_source(source.source),
            "sha256": source.sha256
            or (None if source.source.startswith(HUB_PREFIX) else lock.sources.get(source.label)),
            "rows": _last_part(source.rows),
        }
    )


def _published_audit(audit: Audit) -> Audit:
    return audit.model_copy(
        update={
            "sources": tuple(one.model_copy(update={"source": shown_source(one.source)}) for one in audit.sources),
            "repetition": audit.repetition.model_copy(update={"examples": ()}),
            "leaked": (),
            "mask_preview": (),
        }
    )


def _named_by_file(what: str) -> str:
    kind, found, name = what.partition("data: ")
    return f"{kind}{found}{shown_source(name)}" if found else what


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] or name
