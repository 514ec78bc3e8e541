"""What happens beside the steps: validation at its times, metrics and the bar."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evaluation.allocator import return_freed_memory
from evaluation.inference import LanguageModel
from evaluation.rendering import Example
from finetune.adapter import adapter_weights
from finetune.console import TrainingBar
from finetune.errors import TrainingStopped
from finetune.loss_watch import diverges_now, told_divergence
from finetune.training_records import StepMetrics

MEMORY_EVERY = 10
"""Steps from one return of freed memory to the next; asking for it again takes a tenth of a step."""


@dataclass
class ValidationLog:
    """The validation losses so far and the adapter of the lowest."""

    losses: dict[int, float] = field(default_factory=dict)
    """Step → mean loss of the labelled tokens, in nats."""
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def best_step(self) -> int:
        """The step of the lowest loss, the earlier one of equals."""
        return min(self.losses, key=lambda step: (self.losses[step], step))

    def since_best(self) -> int:
        """Count the measurements after the best one."""
        return sum(step > self.best_step for step in self.losses)


class Validator(TrainerCallback):
    """Measures the validation loss at given steps, keeps the best adapter, stops when patience is used up."""

    def __init__(
        self,
        model: LanguageModel,
        examples: Sequence[Example],
        steps: frozenset[int],
        patience: int | None,
        log: ValidationLog | None = None,
    ) -> None:
        """Take the model in training, the validation examples, and the log of a training that is gone on with."""
        self._model = model
        self._examples = examples
        self._steps = steps
        self._patience = patience
        self.log = log or ValidationLog()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, where this step is one of the times.

        Raises:
            TrainingStopped: the loss is not finite.
        """
        if state.global_step not in self._steps:
            return
        self._model.model.eval()
        losses = self._model.example_losses(self._examples)
        self._model.model.train()
        mean = sum(loss.nll for loss in losses) / sum(loss.tokens for loss in losses)
        if not math.isfinite(mean):
            raise TrainingStopped(
                f"the validation loss is {mean} at step {state.global_step}",
                where="training",
                hint="lower training.learning_rate, or use base.dtype: float32",
            )
        self.log.losses[state.global_step] = of_first_process(mean, args.device)
        if self.log.best_step == state.global_step:
            self.log.best_weights = adapter_weights(self._model.model)
        if self._patience is not None and self.log.since_best() >= self._patience:
            control.should_training_stop = True


def of_first_process(value: float, device: torch.device) -> float:
    """Return the first process's value in every process, so that all of them decide alike."""
    if not torch.distributed.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.broadcast(shared, src=0)
    return float(shared)


class Recorder(TrainerCallback):
    """Writes one line of metrics for every step and moves the bar."""

    def __init__(
        self,
        file: Path,
        tokens_by_step: Sequence[int],
        bar: TrainingBar,
        validation: ValidationLog | None,
        so_far: Sequence[StepMetrics] = (),
    ) -> None:
        """Write to `file`; `tokens_by_step` are the tokens without padding of each step, `so_far` the steps before."""
        self._file = file
        self._tokens_by_step = tokens_by_step
        self._bar = bar
        self._validation = validation
        self._began = time.perf_counter()
        self._seconds_before = so_far[-1].seconds if so_far else 0.0
        self.steps = list(so_far)
        with file.open("a", encoding="utf-8") as lines:
            lines.writelines(f"{step.model_dump_json()}\n" for step in so_far)
        self._losses: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._began = time.perf_counter()
        self._losses = [step.loss for step in self.steps if step.loss is not None]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record a step; the trainer's closing summary is left out."""
        if logs is None or "loss" not in logs:
            return
        validation = self._validation.losses if self._validation else {}
        line = StepMetrics(
            step=state.global_step,
            loss=logs["loss"],
            validation_loss=validation.get(state.global_step),
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            tokens=sum(self._tokens_by_step[: state.global_step]),
            seconds=self._seconds_before + time.perf_counter() - self._began,
        )
        self.steps.append(line)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(line.model_dump_json() + "\n")
        self._losses.append(logs["loss"])
        if diverged := diverges_now(self._losses):
            self._bar.note(told_divergence(diverged))
        last_validation = validation[max(validation)] if validation else None
        self._bar.update(line.step, logs["loss"], line.tokens / line.seconds, last_validation)


class MemoryReturner(TrainerCallback):
    """Hands freed memory back from time to time, where the process keeps it (`evaluation.allocator`)."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Do so before the first step, also of a run that goes on: loading leaves much in pieces."""
        return_freed_memory()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Do so every few steps."""
        if state.global_step % MEMORY_EVERY == 0:
            return_freed_memory()
