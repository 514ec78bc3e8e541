"""When training writes a checkpoint, what it puts into it, and how it goes on from one.

The resuming of transformers is not used: as of 5.23 it reads pickles, takes the highest number for the newest, and goes
on where schedule or generators are missing. Here the plan of batches is the same every time, so training starts at its
next step, with the state that it had there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evaluation.files import STAGING_PREFIX
from finetune.adapter import adapter_weights, restore_adapter
from finetune.checkpoint_state import RandomState, read_tree, read_weights, write_tensors, write_tree
from finetune.checkpoints import PROGRESS, Progress, new_checkpoint, read_progress
from finetune.errors import DataError
from finetune.machine import peak_memory_bytes
from finetune.signals import Stop
from finetune.training_callbacks import Recorder, ValidationLog, of_first_process
from finetune.training_job import TrainingJob
from finetune.training_records import StepMetrics
from finetune.training_trainer import RecipeTrainer

METRICS = "metrics.jsonl"
DEFAULT_MINUTES = 10.0
"""From one checkpoint to the next, where the recipe does not say."""


@dataclass(frozen=True)
class SavedTraining:
    """What a checkpoint holds, in memory."""

    progress: Progress
    metrics: tuple[StepMetrics, ...]
    validation: ValidationLog
    optimizer: Any
    scheduler: Any
    random: RandomState


def load_saved(job: TrainingJob, model: torch.nn.Module, rank: int) -> SavedTraining | None:
    """Read the checkpoint of a job and put its weights into the model; None where training begins.

    Raises:
        DataError: it does not fit the model.
    """
    folder = job.checkpoint
    if folder is None:
        return None
    progress = read_progress(folder)
    like = adapter_weights(model)
    restore_adapter(model, read_weights(folder, "weights", like))
    best = read_weights(folder, "best", like) if progress.validation_losses else {}
    state = read_tree(folder, "optimizer")
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    return SavedTraining(
        progress=progress,
        metrics=tuple(StepMetrics.model_validate_json(line) for line in lines),
        validation=ValidationLog(dict(progress.validation_losses), best),
        optimizer=state["optimizer"],
        scheduler=state["scheduler"],
        random=RandomState(read_tree(folder, _random_name(rank))),
    )


class Checkpointer(TrainerCallback):
    """Writes checkpoints at their times and when the run is asked to end, and puts a saved one back."""

    def __init__(
        self, job: TrainingJob, stop: Stop, saved: SavedTraining | None, validation: ValidationLog | None
    ) -> None:
        """Take what decides about the times, and what training goes on from."""
        self._job = job
        self._stop = stop
        self._saved = saved
        self._validation = validation
        self._random = saved.random if saved else None
        self._written_at = time.monotonic()
        self.stopped = False
        """Whether training was ended before its end, after a checkpoint."""

    @property
    def resumed_after(self) -> tuple[int, ...]:
        """Steps after which this training was gone on with."""
        return (*self._saved.progress.resumed_after, self._saved.progress.step) if self._saved else ()

    def attach(self, trainer: RecipeTrainer, recorder: Recorder) -> None:
        """Have a trainer go on from what was saved, and write what it and its recorder hold."""
        self._trainer: Any = trainer  # transformers leaves open what its optimizer and schedule are
        self._recorder = recorder
        trainer.add_callback(self)
        trainer.write_checkpoint = self._write
        if self._saved is not None:
            trainer.memory.setting = self._saved.progress.memory
            trainer.go_on_after(self._saved.progress.step, self._restore)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._written_at = time.monotonic()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the generators back before the first step, after the loader of batches has drawn from them."""
        if self._random is not None:
            self._random.restore()
            self._random = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide whether this step is kept, and whether it is the last for now; the same in every process."""
        if control.should_training_stop:
            return  # it was the last one, and the adapter is written next
        asked = self._stop.asked()
        wanted = 2 if asked else int(self._is_due(state.global_step))
        decided = int(of_first_process(wanted, args.device))
        control.should_save = decided > 0
        self.stopped = decided == 2
        control.should_training_stop = self.stopped

    def _is_due(self, step: int) -> bool:
        times = self._job.recipe.training.checkpoints
        if times.every_steps is not None:
            return step % times.every_steps == 0
        return time.monotonic() - self._written_at >= 60 * (times.every_minutes or DEFAULT_MINUTES)

    def _write(self) -> None:
        """Write a checkpoint of the step that has just been recorded; the first process does, and the others wait."""
        parent, rank = self._job.run.checkpoints, self._trainer.args.process_index
        parent.mkdir(exist_ok=True)
        write_tree(parent, f"{STAGING_PREFIX}{_random_name(rank)}", RandomState.now().tree)
        if self._job.devices > 1:
            torch.distributed.barrier()
        if rank == 0:
            with new_checkpoint(parent, self._trainer.state.global_step) as folder:
                self._fill(folder)
                for file in parent.glob(f"{STAGING_PREFIX}random-*"):
                    file.rename(folder / file.name.removeprefix(STAGING_PREFIX))
        self._written_at = time.monotonic()

    def _fill(self, folder: Path) -> None:
        trainer, steps = self._trainer, self._recorder.steps
        write_tensors(folder, "weights", adapter_weights(trainer.model))
        if self._validation is not None and self._validation.losses:
            write_tensors(folder, "best", self._validation.best_weights)
        state = {"optimizer": trainer.optimizer.state_dict(), "scheduler": trainer.lr_scheduler.state_dict()}
        write_tree(folder, "optimizer", state)
        (folder / METRICS).write_text(_lines(steps), encoding="utf-8")
        progress = Progress(
            step=trainer.state.global_step,
            made_from=self._job.made_from,
            devices=self._job.devices,
            seconds=steps[-1].seconds,
            peak_memory_bytes=max(peak_memory_bytes(), self._saved.progress.peak_memory_bytes if self._saved else 0),
            memory=trainer.memory.setting,
            validation_losses=self._validation.losses if self._validation else {},
            resumed_after=self.resumed_after,
        )
        (folder / PROGRESS).write_text(progress.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def _restore(self) -> None:
        """Put the state of optimizer and schedule back, once both are there."""
        assert self._saved is not None
        try:
            self._trainer.optimizer.load_state_dict(self._saved.optimizer)
            self._trainer.lr_scheduler.load_state_dict(self._saved.scheduler)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise DataError("its optimizer is not one of this training", where=str(self._job.checkpoint)) from error


def _random_name(rank: int) -> str:
    return f"random-{rank}"


def _lines(steps: Sequence[StepMetrics]) -> str:
    return "".join(f"{step.model_dump_json()}\n" for step in steps)
