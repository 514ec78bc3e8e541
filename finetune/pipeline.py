"""Runs the stages of a recipe in order, and skips those that are finished and whose inputs have not changed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel

from evaluation.files import sha256_of_json, write_model, write_text
from evaluation.task_file import load_task
from finetune.bases import ResolvedBase, resolve_base
from finetune.checkpoints import (
    MadeFrom,
    checkpoint_to_go_on_from,
    discard_checkpoints,
    discard_finished,
    read_progress,
)
from finetune.console import Reporter
from finetune.disk_faults import TellingDiskFaults
from finetune.disk_space import Sizes, bytes_for, require_space
from finetune.machine import computes_bfloat16, describe_environment, peak_memory_bytes, settle_dtypes, versions
from finetune.recipe import Checkpoints, Recipe
from finetune.recipe_file import LoadedRecipe
from finetune.recipe_written import spell_out
from finetune.records import StageTime
from finetune.row_template_files import hash_row_template
from finetune.rows import resolve_source
from finetune.run_directory import HELD_OUT_TASK, STAGES, RunDirectory, Stage, hash_of
from finetune.run_lock import load_lock
from finetune.signals import Signals
from finetune.uncollected import uncollected_imports

Inputs = dict[str, str]


@dataclass(frozen=True)
class Run:
    """A recipe with everything that its stages need."""

    loaded: LoadedRecipe
    directory: RunDirectory
    cache: Path
    reporter: Reporter
    signals: Signals
    base: ResolvedBase
    sources: dict[str, str]
    """Source → hash of its content."""
    source_files: tuple[Path, ...]

    @property
    def sizes(self) -> Sizes:
        """Return what the sizes of its outputs follow from."""
        return Sizes(self.recipe, self.directory, self.base.folder, self.source_files)

    @property
    def recipe(self) -> Recipe:
        """The validated recipe."""
        return self.loaded.recipe

    @property
    def command(self) -> str:
        """The command that repeats the run."""
        settings = [word for override in self.loaded.overrides for word in ("--set", override)]
        return shlex.join(["finetune", "run", self.loaded.named, *settings])


def run_recipe(
    loaded: LoadedRecipe,
    folder: Path,
    cache: Path,
    reporter: Reporter,
    until: Stage = "report",
    signals: Signals | None = None,
) -> RunDirectory:
    """Run the stages of a recipe up to and including `until`.

    Raises:
        UserError: whatever stops a stage; finished stages stay finished.
        Interrupted: a signal was heard.
    """
    directory = RunDirectory(folder)
    loaded = replace(loaded, recipe=settle_dtypes(loaded.recipe, bfloat16=computes_bfloat16()))
    with TellingDiskFaults("looking for what the recipe names", folder, cache), directory.hold():
        run = _resolve(loaded, directory, cache, reporter, signals or Signals())
        for stage in STAGES[: STAGES.index(until) + 1]:
            with TellingDiskFaults(stage, folder, cache):
                _run_stage(run, stage)
    if until == "report":
        reporter.say(f"open {folder / 'report.html'}")
    return directory


def _resolve(loaded: LoadedRecipe, directory: RunDirectory, cache: Path, reporter: Reporter, signals: Signals) -> Run:
    """Fetch and hash what the recipe names."""
    recipe = loaded.recipe
    pinned = load_lock(directory).pin(recipe.base) if directory.lock_file.exists() else recipe.base
    base = resolve_base(pinned, cache, reporter.say)
    found = {s.label: resolve_source(s, cache, reporter.say) for s in recipe.data.sources}
    hashes = {name: source.sha256 for name, source in found.items()}
    files = tuple(source.path for source in found.values())
    return Run(loaded, directory, cache, reporter, signals, base, hashes, files)


def _write_down(run: Run) -> None:
    """Write the recipe and its lock, now that something is made from them."""
    from finetune.run_locking import build_lock

    write_text(run.directory.recipe, spell_out(run.recipe))
    write_model(run.directory.lock_file, build_lock(run.recipe, run.base, run.sources, run.directory))


def _run_stage(run: Run, stage: Stage) -> None:
    inputs = _inputs(run, stage)
    stale = run.directory.why_stale(stage, inputs)
    if stale is None:
        run.reporter.say(f"{stage}: finished, skipped")
        if stage == "train":
            discard_finished(run.directory, inputs)  # it was killed before it could
        return
    run.reporter.say(f"{stage}: {stale}")
    require_space(run.directory.folder, bytes_for(stage, run.sizes), stage, run.cache)
    began = time.perf_counter()
    earlier = _WORK[stage](run) or StageTime(stage=stage, seconds=0.0, peak_memory_bytes=0)
    _write_down(run)
    seconds = earlier.seconds + time.perf_counter() - began
    peak = max(earlier.peak_memory_bytes, peak_memory_bytes())
    run.directory.remove_outdated(stage)
    run.directory.finish(stage, inputs, StageTime(stage=stage, seconds=seconds, peak_memory_bytes=peak))
    if stage == "train":
        discard_checkpoints(run.directory)
    run.reporter.say(f"{stage}: done in {seconds:.0f} s")
    run.signals.may_end()


def _inputs(run: Run, stage: Stage) -> Inputs:
    """Return the hash of everything that a stage depends on, by the name a person would use for it."""
    recipe, directory = run.recipe, run.directory
    packages = sha256_of_json([f"{name}=={number}" for name, number in versions().items()])
    shared = {"seed": str(recipe.seed), "base": run.base.sha256, "versions": packages}
    match stage:
        case "prepare":
            templates = {source.rows: hash_row_template(source.rows) for source in recipe.data.sources}
            sections = {"data": _hash(recipe.data), "privacy": _hash(recipe.privacy)}
            scored = {
                "evaluation.max_new_tokens": str(recipe.evaluation.max_new_tokens),
                "task files": _tasks_hash(recipe),  # no row of theirs may stand among the training rows
            }
            return shared | sections | scored | run.sources | templates
        case "train":
            # How many devices, and how often it is kept, is not what is learned.
            learned = recipe.training.model_copy(update={"devices": 1, "checkpoints": Checkpoints()})
            sections = {"adapter": _hash(recipe.adapter), "training": _hash(learned)}
            return (
                shared
                | sections
                | {
                    "quantization": _hash(recipe.quantization),
                    "base.dtype": recipe.base.dtype,
                    "tracking": str(recipe.tracking),
                    "prepared examples": _examples_hash(directory),
                }
            )
        case "merge":
            return shared | {
                "merge": _hash(recipe.merge),
                "adapter weights": directory.output_hash("train"),
                "prepared examples": _examples_hash(directory),
            }
        case "evaluate":
            return shared | {
                "evaluation": _hash(recipe.evaluation),
                "task files": _tasks_hash(recipe),
                "merged weights": directory.output_hash("merge"),
                "adapter weights": directory.output_hash("train"),
                "prepared data": directory.output_hash("prepare"),
            }
        case "report":
            return {"scores": directory.output_hash("evaluate"), "recipe": _hash(recipe)}


def _prepare(run: Run) -> None:
    # Each stage imports what it needs when it runs: a finished run is skipped in seconds.
    with uncollected_imports():
        from finetune.prepare import prepare

    prepare(run.recipe, run.directory, run.base.folder, run.cache, run.reporter)


def _train(run: Run) -> StageTime | None:
    """Train, and return what the parts took that were interrupted: their steps, up to the checkpoint they left."""
    with uncollected_imports():
        from finetune.launch import count_devices, launch_training
        from finetune.training_job import TrainingJob
        from finetune.upstream_contracts import check_contracts

    check_contracts()
    write_model(run.directory.environment, describe_environment())
    name, revision = run.base.published
    devices = count_devices(run.recipe.training.devices)
    made_from = MadeFrom(decisive=_inputs(run, "train"), origins=_inputs(run, "prepare") | versions())
    checkpoint = checkpoint_to_go_on_from(run.directory, made_from, devices, run.reporter.say)
    # Read before training, which replaces it.
    earlier = read_progress(checkpoint) if checkpoint is not None else None
    job = TrainingJob(
        recipe=run.recipe,
        run_folder=run.directory.folder,
        base_folder=run.base.folder,
        base_name=name,
        base_revision=revision,
        devices=devices,
        made_from=made_from,
        checkpoint=checkpoint,
    )
    launch_training(job, run.reporter, run.signals)
    if earlier is None:
        return None
    return StageTime(stage="train", seconds=earlier.seconds, peak_memory_bytes=earlier.peak_memory_bytes)


def _merge(run: Run) -> None:
    with uncollected_imports():
        from finetune.contenders import trained_spec
        from finetune.merging import merge

    merge(run.recipe, run.directory, trained_spec(run.recipe, run.directory, run.base.folder), run.reporter)


def _evaluate(run: Run) -> None:
    with uncollected_imports():
        from finetune.contenders import contenders
        from finetune.scoring import score_contenders

    score_contenders(run.recipe, run.directory, contenders(run.recipe, run.directory, run.base), run.reporter)


def _report(run: Run) -> None:
    from finetune.reporting import report_run

    run.reporter.say(f"  {report_run(run.recipe, run.directory, run.command)}")


_WORK: dict[Stage, Callable[[Run], StageTime | None]] = {
    "prepare": _prepare,
    "train": _train,
    "merge": _merge,
    "evaluate": _evaluate,
    "report": _report,
}


def _hash(section: BaseModel | None) -> str:
    return sha256_of_json(section.model_dump(mode="json") if section else None)


def _examples_hash(directory: RunDirectory) -> str:
    """Hash the examples that training sees; the held-out rows are not among them."""
    return sha256_of_json([hash_of(path) for path in sorted(directory.data.glob("*.arrow"))])


def _tasks_hash(recipe: Recipe) -> str:
    names = recipe.evaluation.tasks
    return sha256_of_json([name if name == HELD_OUT_TASK else load_task(name).sha256 for name in names])
