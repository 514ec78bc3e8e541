"""`finetune rerun`: repeats a run from its recipe and its lock, and says what came out otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.files import write_model
from finetune.bases import resolve_base
from finetune.cache import source_hash
from finetune.console import Reporter
from finetune.errors import DataError, MachineError, NotRepeated
from finetune.launch import count_devices
from finetune.machine import all_versions, computes_bfloat16, describe_environment, settle_dtypes
from finetune.pipeline import run_recipe
from finetune.recipe import Recipe
from finetune.recipe_file import load_recipe
from finetune.repetition import Repetition, compare_outcomes
from finetune.rows import resolve_source
from finetune.run_directory import STAGES, RunDirectory, Stage
from finetune.run_lock import Lock, LockedInputs, LockedMachine, load_lock
from finetune.run_locking import lock_inputs, lock_machine, recipe_hash
from finetune.signals import Signals


@dataclass(frozen=True)
class Rerun:
    """What is asked for."""

    run: RunDirectory
    out: Path
    cache: Path
    locked: bool
    """Refuse where base, rows, tokenizer or templates are not those of the lock."""
    other_machine: bool
    """Go on where machine or packages are others."""


@dataclass(frozen=True)
class Change:
    """Something that the lock names and that is not so here."""

    what: str
    was: str
    here: str

    def __str__(self) -> str:
        """Say what it was and what it is."""
        return f"{self.what}: {self.was} → {self.here}"


def rerun(asked: Rerun, reporter: Reporter, signals: Signals | None = None) -> Repetition:
    """Run the recipe of a run once more in a new folder, as far as the run has got, and compare.

    Raises:
        DataError: the run is damaged, its lock too old, the folder in use, or something that goes in is not as locked.
        MachineError: machine or packages are others, and nobody said to go on.
        NotRepeated: something came out otherwise.
        Interrupted: a signal was heard.
    """
    until = _last_finished(asked.run)
    lock, recipe = _load(asked.run)
    _refuse_used(asked.out, asked.run)
    inputs = changed_inputs(recipe, lock, asked.cache, reporter)
    machine = changed_machine(lock, count_devices(recipe.training.devices))
    _say_changes("what goes in", inputs, reporter)
    _say_changes("machine and packages", machine, reporter)
    if inputs and asked.locked:
        hint = "put it back, or leave out --locked to see what comes of it"
        raise DataError(f"not what went into the run: {_listed(inputs)}", where=str(asked.run.folder), hint=hint)
    if machine and asked.locked and not asked.other_machine:
        what = f"not where the run was made: {_listed(machine)}"
        raise MachineError(what, where=str(asked.run.folder), hint="--other-machine goes on and says what it changed")
    # The new run is pinned by the lock as well: a branch of the hub that has moved since does not matter.
    write_model(RunDirectory(asked.out).lock_file, lock)
    again = run_recipe(load_recipe(str(asked.run.recipe)), asked.out, asked.cache, reporter, until, signals)
    found = compare_outcomes(asked.run, again)
    _judge(found, asked, reporter)
    return found


def changed_inputs(recipe: Recipe, lock: Lock, cache: Path, reporter: Reporter) -> list[Change]:
    """List what of base, rows, tokenizer and templates is another than was locked."""
    assert lock.inputs is not None, "checked when it was loaded"
    base = resolve_base(lock.pin(recipe.base), cache, reporter.say)
    here = lock_inputs(recipe, base)
    sources = {s.label: resolve_source(s, cache, reporter.say).sha256 for s in recipe.data.sources}
    return [
        *_changes("base ", lock.inputs.base_files, here.base_files),
        *_changes("", _of_base(lock.inputs), _of_base(here)),
        *_changes("rows of ", lock.sources, sources),
        *_changes("row template ", lock.inputs.row_templates, here.row_templates),
        *_changes("task ", lock.inputs.task_files, here.task_files),
    ]


def changed_machine(lock: Lock, devices: int) -> list[Change]:
    """List what of machine, packages and program is another than was locked."""
    assert lock.program is not None, "checked when it was loaded"
    here = lock_machine(describe_environment(), devices)
    program = {"source of this program": source_hash()}
    return [
        *(_changes("", _facts(lock.machine), _facts(here)) if lock.machine else ()),
        *_changes("", lock.versions, all_versions()),
        *_changes("", {"source of this program": lock.program.code_sha256}, program),
    ]


def _load(run: RunDirectory) -> tuple[Lock, Recipe]:
    lock = load_lock(run)
    if lock.inputs is None or lock.program is None:
        what = "the lock is from before runs could be repeated: it does not say what went in"
        hint = f"run it anew, which writes one that does: finetune run {run.recipe} --out FOLDER"
        raise DataError(what, where=str(run.lock_file), hint=hint)
    recipe = load_recipe(str(run.recipe)).recipe
    if recipe_hash(settle_dtypes(recipe, bfloat16=computes_bfloat16())) != lock.recipe_sha256:
        what = "the recipe is not the one that was run"
        raise DataError(what, where=str(run.recipe), hint=f"run it as what it is: finetune run {run.recipe}")
    return lock, recipe


def _last_finished(run: RunDirectory) -> Stage:
    """Return the last of the stages that are finished, and check that what they wrote is still there as it was."""
    last: Stage | None = None
    for stage in STAGES:
        marker = run.marker(stage)
        if marker is None:
            break
        if why := run.why_stale(stage, marker.inputs):
            raise DataError(f"the stage {stage!r} is not as it was finished: {why}", where=str(run.folder))
        last = stage
    if last is None:
        raise DataError("no finished run in this folder", where=str(run.folder), hint="such as runs/icd10-quickstart")
    return last


def _refuse_used(out: Path, run: RunDirectory) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        hint = f"--out names another; a repetition that was cut off goes on with: finetune run {run.recipe} --out {out}"
        raise DataError("there is something in this folder already", where=str(out), hint=hint)


def _of_base(inputs: LockedInputs) -> dict[str, str]:
    return {"tokenizer": inputs.tokenizer_sha256, "chat template": inputs.chat_template_sha256}


def _facts(machine: LockedMachine) -> dict[str, str]:
    return {name: str(value) for name, value in machine.model_dump(mode="json").items()}


def _changes(kind: str, was: Mapping[str, str], here: Mapping[str, str]) -> list[Change]:
    names = sorted(was.keys() | here.keys())
    pairs = [(name, was.get(name, "absent"), here.get(name, "absent")) for name in names]
    return [Change(f"{kind}{name}", before, now) for name, before, now in pairs if before != now]


def _listed(changes: Sequence[Change]) -> str:
    return ", ".join(change.what for change in changes)


def _say_changes(of: str, changes: Sequence[Change], reporter: Reporter) -> None:
    for change in changes:
        reporter.say(f"{of}: {change}")


def _judge(found: Repetition, asked: Rerun, reporter: Reporter) -> None:
    """Say that the run repeats, or what does not.

    Raises:
        NotRepeated: it does not.
    """
    if found.identical:
        reporter.say(f"bit-identical: {found.compared} files of {asked.run.folder}, but for times")
        return
    for difference in (*found.files, *found.scores):
        reporter.say(f"  {difference}")
    first = str(found.files[0]) if found.files else str(found.scores[0])
    what = f"not repeated: {len(found.files)} of {found.compared} files differ, {len(found.scores)} scores"
    hint = f"finetune diff {asked.run.folder} {asked.out}"
    raise NotRepeated(f"{what} moved, first {first}", where=str(asked.out), hint=hint)
