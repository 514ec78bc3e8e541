"""Checkpoints of a training run as files: whole or absent, proven by their manifest, the older one kept a while.

checkpoints/step-00000120/ holds state.json, optimizer.json, metrics.jsonl and safetensors: weights, optimizer, random
(one for each process) and best, where there are validation rows. Nothing in it is pickled. manifest.json, written last,
holds size and hash of each.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from evaluation.files import STAGING_PREFIX, sha256_of_file, staged_folder
from finetune.errors import DataError
from finetune.records import Record
from finetune.run_directory import RunDirectory
from finetune.training_records import MemorySetting

MANIFEST = "manifest.json"
PROGRESS = "state.json"
PREFIX = "step-"
KEPT = 2
"""Newest checkpoints that are kept: should the last be damaged, the one before it is there."""
ANEW = "--restart trains anew from the first step"


Kind = TypeVar("Kind", bound=Record)


class WrittenFile(Record):
    """A file of a checkpoint."""

    bytes: int
    sha256: str


class Manifest(Record):
    """manifest.json: every other file of a checkpoint."""

    files: dict[str, WrittenFile]


class MadeFrom(Record):
    """What a training run was made from."""

    decisive: dict[str, str] = Field(default_factory=dict)
    """Name of an input (a section of the recipe, the base, the prepared examples) → hash: all must be the same."""
    origins: dict[str, str] = Field(default_factory=dict)
    """What stands behind them (files of rows, templates, packages) → hash or version: names what changed."""


class Progress(Record):
    """state.json: how far training had come."""

    step: int
    """Finished steps; also the place in the plan of batches, which is the same every time."""
    made_from: MadeFrom
    devices: int
    seconds: float
    """Of training, over all its parts."""
    peak_memory_bytes: int
    """Largest resident memory of a process of this stage so far, over all its parts."""
    memory: MemorySetting
    """What training has settled on for want of memory."""
    validation_losses: dict[int, float]
    resumed_after: tuple[int, ...]
    """Steps after which an interrupted training was gone on with."""


@contextmanager
def new_checkpoint(parent: Path, step: int) -> Iterator[Path]:
    """Yield a folder to fill; it becomes the checkpoint of a step once all of it is on the disk and reads back.

    Raises:
        DataError: it does not read back; the older checkpoints are kept.
    """
    folder = parent / f"{PREFIX}{step:08d}"
    with staged_folder(folder) as staging:
        yield staging
        files = {
            path.name: WrittenFile(bytes=path.stat().st_size, sha256=sha256_of_file(path))
            for path in sorted(staging.iterdir())
        }
        (staging / MANIFEST).write_text(Manifest(files=files).model_dump_json(), encoding="utf-8")
    verify_checkpoint(folder)
    for older in checkpoints(parent)[:-KEPT]:
        shutil.rmtree(older)


def checkpoints(parent: Path) -> list[Path]:
    """Return the checkpoints of a run, whole or not, the newest last."""
    return sorted(path for path in parent.glob(f"{PREFIX}*") if path.is_dir() and not path.is_symlink())


def verify_checkpoint(folder: Path) -> None:
    """Check that a checkpoint is, byte by byte, what was written.

    Raises:
        DataError: names the first file that is missing, shorter, changed, or not of the checkpoint.
    """
    manifest = _read(Manifest, folder / MANIFEST)
    for name, written in manifest.files.items():
        file = folder / name
        if Path(name).name != name or file.is_symlink() or not file.is_file():
            raise DataError("this file of the checkpoint is missing", where=str(file))
        if file.stat().st_size != written.bytes:
            what = f"it has {file.stat().st_size} bytes, and {written.bytes} were written"
            raise DataError(what, where=str(file))
        if _hash(file) != written.sha256:
            raise DataError("it is not what was written: its hash differs", where=str(file))
    if PROGRESS not in manifest.files:
        raise DataError("this file of the checkpoint is missing", where=str(folder / PROGRESS))
    if strangers := {path.name for path in folder.iterdir()} - manifest.files.keys() - {MANIFEST}:
        raise DataError("it is no file of the checkpoint", where=str(folder / min(strangers)))


def newest_checkpoint(parent: Path, say: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint that is whole, or None where there is none at all; remove damaged newer ones.

    Raises:
        DataError: there are checkpoints, and none is whole.
    """
    faults: dict[Path, DataError] = {}
    for folder in reversed(checkpoints(parent)):
        try:
            verify_checkpoint(folder)
        except DataError as fault:
            faults[folder] = fault
            continue
        for damaged, why in faults.items():
            say(f"  a checkpoint is damaged and is removed: {why}")
            shutil.rmtree(damaged)
        return folder
    if faults:
        raise DataError("no checkpoint is whole: " + "; ".join(map(str, faults.values())), where=str(parent), hint=ANEW)
    return None


def read_progress(folder: Path) -> Progress:
    """Read how far a checkpoint is.

    Raises:
        DataError: it cannot be read.
    """
    return _read(Progress, folder / PROGRESS)


def require_same(progress: Progress, made_from: MadeFrom, devices: int, folder: Path) -> None:
    """Check that training would go on with what it began with.

    Raises:
        DataError: names what changed.
    """
    changed = _differing(progress.made_from.decisive, made_from.decisive)
    if changed:
        behind = [name for name in _differing(progress.made_from.origins, made_from.origins) if name not in changed]
        what = ", ".join(changed) + (f" ({', '.join(behind)})" if behind else "")
        raise DataError(
            f"training was interrupted after step {progress.step}, and these changed since: {what}",
            where=str(folder),
            hint=f"put them back to go on; {ANEW}; --out leaves this run as it is",
        )
    if progress.devices != devices:
        raise DataError(
            f"training was interrupted after step {progress.step} on {progress.devices} devices, and now has {devices}",
            where=str(folder),
            hint=f"--devices {progress.devices} goes on; {ANEW}",
        )


def checkpoint_to_go_on_from(
    run: RunDirectory, made_from: MadeFrom, devices: int, say: Callable[[str], None]
) -> Path | None:
    """Return the checkpoint that an interrupted training goes on from, and say so; None where training begins.

    Raises:
        DataError: no checkpoint is whole, or what it was made from changed.
    """
    folder = newest_checkpoint(run.checkpoints, say)
    if folder is None:
        return None
    progress = read_progress(folder)
    require_same(progress, made_from, devices, folder)
    say(f"  going on after step {progress.step}, which was saved")
    return folder


def discard_checkpoints(run: RunDirectory) -> None:
    """Remove the checkpoints of a run; whoever calls this holds it."""
    if run.checkpoints.exists():
        gone = run.checkpoints.rename(run.folder / f"{STAGING_PREFIX}checkpoints")  # at once, and then file by file
        shutil.rmtree(gone)


def discard_finished(run: RunDirectory, decisive: Mapping[str, str]) -> None:
    """Remove checkpoints of a training that is finished; those of another one, of other inputs, are kept."""
    for folder in checkpoints(run.checkpoints):
        try:
            if read_progress(folder).made_from.decisive != decisive:
                return
        except DataError:
            return
    discard_checkpoints(run)


def _differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def _hash(file: Path) -> str:
    try:
        return sha256_of_file(file)
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", where=str(file)) from error


def _read(kind: type[Kind], file: Path) -> Kind:
    if file.is_symlink():
        raise DataError("it is a link, and not what was written", where=str(file))
    try:
        return kind.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise DataError("this file of the checkpoint is missing", where=str(file)) from error
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", where=str(file)) from error
    except ValidationError as error:
        raise DataError("it is not what was written", where=str(file)) from error
