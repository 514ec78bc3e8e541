"""A run is one directory; a finished stage is a marker that holds the hashes of what went in and what came out.

Nothing is read as finished because it exists: the marker is written last, and every output it names must still have
the size and hash that it had.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from evaluation.files import sha256_of_file, sha256_of_folder, sweep_staging, write_model
from finetune.errors import DataError, MachineError
from finetune.records import StageTime

Stage = Literal["prepare", "train", "merge", "evaluate", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)

HELD_OUT_TASK = "held_out"
"""Name of the task that the held-out rows become."""

OUTPUTS: dict[Stage, tuple[str, ...]] = {
    "prepare": ("data",),
    "train": ("training", "adapter"),
    "merge": ("merged",),
    "evaluate": ("evaluation",),
    "report": ("report.html", "report.md", "report.json"),
}
"""What each stage writes, relative to the run directory."""

OUTDATED_BY: dict[Stage, tuple[Stage, ...]] = {
    "prepare": ("evaluate", "report"),
    "train": ("merge", "evaluate", "report"),
    "merge": ("evaluate", "report"),
    "evaluate": ("report",),
    "report": (),
}
"""What is removed when a stage runs anew; data may come out as before, so training and merge wait for it."""


class StageMarker(BaseModel):
    """stages/<stage>.json: the proof that a stage was finished, and from what."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    stage: str
    inputs: dict[str, str]
    """Name of an input (a section of the recipe, a file, an earlier stage) → hash."""
    outputs: dict[str, str]
    """Name of an output → hash."""
    time: StageTime
    records: dict[str, str] = {}
    """Of the last stage: what else a finished run consists of → hash; the other markers are among it."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths below one run's folder."""

    folder: Path

    @property
    def data(self) -> Path:
        """Examples, held-out samples and the account of the data stage."""
        return self.folder / "data"

    @property
    def refused(self) -> Path:
        """The audit of a data stage that was refused and the rows it set aside; gone when it succeeds."""
        return self.folder / "refused"

    @property
    def stopped(self) -> Path:
        """The rows and the last good adapter of a training that met something not finite; gone when it begins anew."""
        return self.folder / "stopped"

    @contextmanager
    def refusing(self, write_account: Callable[[Path], None]) -> Iterator[None]:
        """Keep the account of the rows where a block refuses them; data/ stays what it was."""
        shutil.rmtree(self.refused, ignore_errors=True)
        try:
            yield
        except DataError:
            write_account(self.refused)
            raise

    @property
    def training(self) -> Path:
        """Metrics and summary of training."""
        return self.folder / "training"

    @property
    def checkpoints(self) -> Path:
        """How far an interrupted training had come; gone when it is finished."""
        return self.folder / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter, as it is published."""
        return self.folder / "adapter"

    @property
    def merged(self) -> Path:
        """The base with the adapter folded in, as it is published."""
        return self.folder / "merged"

    @property
    def evaluation(self) -> Path:
        """Results and samples by contender."""
        return self.folder / "evaluation"

    @property
    def recipe(self) -> Path:
        """The recipe as it was resolved."""
        return self.folder / "recipe.yaml"

    @property
    def lock_file(self) -> Path:
        """Hashes of everything that went in."""
        return self.folder / "recipe.lock.json"

    @property
    def environment(self) -> Path:
        """Where it ran."""
        return self.folder / "environment.json"

    def marker(self, stage: Stage) -> StageMarker | None:
        """Read a stage's marker; none if the stage is not finished or the marker is damaged."""
        try:
            return StageMarker.model_validate_json(self.marker_file(stage).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def why_stale(self, stage: Stage, inputs: dict[str, str]) -> str | None:
        """Say why a stage has to run, or return None where its finished outputs are still right."""
        marker = self.marker(stage)
        if marker is None:
            return "not finished yet"
        changed = sorted(
            name for name in inputs.keys() | marker.inputs.keys() if inputs.get(name) != marker.inputs.get(name)
        )
        if changed:
            return f"{', '.join(changed)} changed"
        for name, sha256 in marker.outputs.items():
            if not (self.folder / name).exists() or hash_of(self.folder / name) != sha256:
                return f"{name} is missing or was changed"
        if stage == STAGES[-1]:
            return self._changed_record(marker)
        return None

    def _changed_record(self, marker: StageMarker) -> str | None:
        """Say which record of a run is another than when its last stage was finished; none where all are as then."""
        found = self._records()
        for name in sorted({*marker.records, *found}):
            if found.get(name) != marker.records.get(name):
                return f"{name} is missing or was changed"
        return None

    def _records(self) -> dict[str, str]:
        """Hash what of a run is no stage's output: the recipe as it was run, its lock, the machine, the markers."""
        files = [self.recipe, self.lock_file, self.environment, *map(self.marker_file, STAGES[:-1])]
        return {file.relative_to(self.folder).as_posix(): hash_of(file) for file in files if file.is_file()}

    def remove_outdated(self, stage: Stage) -> None:
        """Remove what speaks of the outputs that this stage has just replaced.

        Until then everything stays where it was: a stage that fails has lost nothing.
        """
        for later in OUTDATED_BY[stage]:
            self.forget(later)

    def forget(self, stage: Stage) -> None:
        """Remove a stage's marker, and then what it wrote."""
        self.marker_file(stage).unlink(missing_ok=True)
        for name in OUTPUTS[stage]:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def finish(self, stage: Stage, inputs: dict[str, str], time: StageTime) -> None:
        """Write the marker, last of all."""
        outputs = {name: hash_of(self.folder / name) for name in OUTPUTS[stage]}
        records = self._records() if stage == STAGES[-1] else {}
        marker = StageMarker(stage=stage, inputs=inputs, outputs=outputs, time=time, records=records)
        write_model(self.marker_file(stage), marker)

    def output_hash(self, stage: Stage) -> str:
        """Return one hash of all outputs of a finished stage."""
        marker = self.marker(stage)
        assert marker is not None, f"{stage} is not finished"
        return " ".join(f"{name}:{sha256}" for name, sha256 in sorted(marker.outputs.items()))

    def stage_times(self, stages: Sequence[Stage] = STAGES) -> tuple[StageTime, ...]:
        """Return the times of the finished stages, in order."""
        return tuple(marker.time for stage in stages if (marker := self.marker(stage)) is not None)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the run for this process, and sweep what an interrupted one left.

        Raises:
            MachineError: another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".holder").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise MachineError(
                    f"process {holder} is working on this run",
                    where=str(self.folder),
                    hint="wait for it, or use --out",
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            for parent in (self.folder, self.folder / "stages", self.checkpoints):
                sweep_staging(parent)
            yield

    def marker_file(self, stage: Stage) -> Path:
        """Name the file of a stage's marker."""
        return self.folder / "stages" / f"{stage}.json"


def hash_of(path: Path) -> str:
    """Hash a file, or a folder with everything in it."""
    return sha256_of_folder(path) if path.is_dir() else sha256_of_file(path)
