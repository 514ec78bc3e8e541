"""Writes down what a run is made from, by content: recipe.lock.json is made by the tool and by nobody else."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

from pydantic import JsonValue

import finetune
from evaluation.files import sha256_of_json
from evaluation.task_file import load_task
from evaluation.tokenizer import load_tokenizer
from finetune.audit_records import Audit
from finetune.bases import ResolvedBase
from finetune.cache import source_hash
from finetune.machine import all_versions
from finetune.recipe import Recipe
from finetune.records import Environment
from finetune.row_template_files import hash_row_template
from finetune.run_directory import HELD_OUT_TASK, RunDirectory
from finetune.run_lock import Lock, LockedInputs, LockedMachine, LockedProgram
from finetune.training_records import TrainingSummary


def build_lock(recipe: Recipe, base: ResolvedBase, sources: dict[str, str], run: RunDirectory) -> Lock:
    """Write down everything that a run is made from, as far as it has got.

    `sources` are the hashes of the sources' contents, by name. Machine and rows are those of the finished stages.
    """
    return Lock(
        recipe_sha256=recipe_hash(recipe),
        base=base.identity,
        base_revision=recipe.base.revision,
        base_sha256=base.sha256,
        base_origin=base.origin,
        sources=dict(sorted(sources.items())),
        seed=recipe.seed,
        versions=all_versions(),
        inputs=lock_inputs(recipe, base, _count_rows(run)),
        machine=_machine_of_training(run),
        program=LockedProgram(code_sha256=source_hash(), commit=_commit()),
    )


def recipe_hash(recipe: Recipe) -> str:
    """Hash a recipe with every default filled in."""
    return sha256_of_json(recipe.model_dump(mode="json"))


def lock_inputs(recipe: Recipe, base: ResolvedBase, rows: dict[str, int] | None = None) -> LockedInputs:
    """Hash base, tokenizer and templates as they are here now."""
    tokenizer = load_tokenizer(base.folder)
    special: JsonValue = {str(name): str(token) for name, token in tokenizer.special_tokens_map.items()}
    templates = sorted({source.rows for source in recipe.data.sources})
    tasks = sorted(set(recipe.evaluation.tasks) - {HELD_OUT_TASK})
    return LockedInputs(
        base_files=dict(base.files),
        tokenizer_sha256=sha256_of_json([tokenizer.backend_tokenizer.to_str(), special]),
        chat_template_sha256=sha256_of_json(str(tokenizer.chat_template or "")),
        row_templates={name: hash_row_template(name) for name in templates},
        task_files={name: load_task(name).sha256 for name in tasks},
        rows=rows,
    )


def lock_machine(environment: Environment, devices: int) -> LockedMachine:
    """Return what of a machine decides how sums are rounded."""
    return LockedMachine(
        python=environment.python,
        platform=environment.platform,
        processor=environment.processor,
        instructions=environment.instructions,
        threads=environment.torch_threads,
        device=environment.device,
        driver=environment.driver,
        devices=devices,
    )


def _machine_of_training(run: RunDirectory) -> LockedMachine | None:
    summary = run.training / "summary.json"
    if not (run.environment.exists() and summary.exists()):
        return None
    devices = TrainingSummary.model_validate_json(summary.read_bytes()).devices
    return lock_machine(Environment.model_validate_json(run.environment.read_bytes()), devices)


def _count_rows(run: RunDirectory) -> dict[str, int] | None:
    file = run.data / "audit.json"
    if not file.exists():
        return None
    audit = Audit.model_validate_json(file.read_bytes())
    rows: Counter[str] = Counter()
    for account in audit.sources:
        rows[account.source] += account.rows  # several splits of a data set are sources of one name
    return dict(sorted(rows.items()))


def _commit() -> str | None:
    """Return the commit of the checkout that this program runs from; None where it is installed."""
    root = Path(str(finetune.__file__)).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None  # one without a commit has a HEAD all the same
