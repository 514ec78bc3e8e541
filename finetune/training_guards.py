"""Stops a run at what is not finite: a loss or a gradient before the update, a weight before anything is written of it.

Whatever was checked is known by the norm of all of it together, which is one number to wait for; where that is not
finite, the tensors are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.errors import TrainingStopped


class NotFinite(TrainingStopped):
    """A loss, a gradient or a weight is not finite; says which batch did it, for the account that is written of it."""

    def __init__(self, what: str, step: int, position: int | None = None, hint: str = "") -> None:
        """Take the step, from 1, and the place of the micro-batch among this process's of it; none: the whole step."""
        super().__init__(what, where="training", hint=hint)
        self.step = step
        self.position = position


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name the first tensor that holds a NaN or an infinity."""
    if torch.isfinite(torch.nn.utils.get_total_norm(list(tensors.values()))):
        return None
    # The norm of finite numbers overflows where they are huge.
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)


def trainable_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return what is trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def check_gradients(trainable: Mapping[str, torch.nn.Parameter], step: int) -> None:
    """Check the gradients of a step, counted from 1, before its update.

    Raises:
        TrainingStopped: a tensor has no gradient.
        NotFinite: a gradient is not finite.
    """
    gradients: dict[str, Tensor] = {}
    for name, parameter in trainable.items():
        if parameter.grad is None:
            raise TrainingStopped(f"{name} gets no gradient at step {step}", where="training")
        gradients[name] = parameter.grad
    broken = first_not_finite(gradients)
    if broken is not None:
        raise NotFinite(
            f"the gradient of {broken} is not finite at step {step}; no update was made with it",
            step,
            hint="lower training.learning_rate, or use base.dtype: float32",
        )


class GradientGuard(TrainerCallback):
    """Stops the run before an update with a gradient that is not finite, or with none at all."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Watch the trainable tensors of a model."""
        self._trainable = trainable_parameters(model)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check every gradient; clipping has been done by now, and what is not clipped is checked here alone."""
        check_gradients(self._trainable, state.global_step + 1)


class WeightGuard(TrainerCallback):
    """Takes an update back that made a weight which is not finite, and stops the run.

    It keeps a copy of what is trained from before each update, on the device where it is.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Watch the trainable tensors of a model."""
        self._trainable = trainable_parameters(model)
        self._copies = [torch.empty_like(parameter) for parameter in self._trainable.values()]
        self._steps: int | None = None

    @property
    def _weights(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self._trainable.values()]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Copy the weights, which the last check found finite."""
        torch._foreach_copy_(self._copies, self._weights)
        self._steps = state.global_step

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the weights.

        Raises:
            NotFinite: names the first that is not finite; all are what they were before the update.
        """
        broken = first_not_finite({name: p.detach() for name, p in self._trainable.items()})
        if broken is None:
            return
        torch._foreach_copy_(self._weights, self._copies)
        raise NotFinite(
            f"the update of step {state.global_step + 1} made weights of {broken} not finite; it was taken back",
            state.global_step + 1,
            hint="lower training.learning_rate, or use base.dtype: float32",
        )

    def settle(self, steps_done: int) -> int | None:
        """Leave the model with finite weights; return how many steps they have learned from, none if there are no such.

        Where something other than an update broke the weights, they are those from before the last update.
        """
        if first_not_finite({name: p.detach() for name, p in self._trainable.items()}) is None:
            return steps_done
        if self._steps is not None:
            torch._foreach_copy_(self._weights, self._copies)
        return self._steps
