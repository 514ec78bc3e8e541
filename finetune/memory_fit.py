"""Fits training into the memory there is: where it runs out, micro-batches are halved, then checkpointing goes on.

A step keeps its rows: its micro-batches are computed in more pieces, whose losses add up to the same sum over the same
number of tokens. The largest planned micro-batch is tried before the first step, so that what does not fit shows then;
on a CPU the first one is the trial where it is about as large.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune.batch_cutting import Batch, can_be_cut, cut, size_of
from finetune.batches import MicroBatch
from finetune.errors import MachineError
from finetune.training_records import MemorySetting

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch's other errors say: of its CPU allocator on Linux and Windows, and of cuBLAS's own workspace."""

ALIKE = 0.95
"""A first micro-batch of so many of the largest one's tokens tells as much as a trial of that, where few percent decide
nothing."""


@dataclass(frozen=True)
class Computing:
    """What is asked of the trainer for one micro-batch."""

    add_gradients: Callable[[Batch], Tensor]
    """Returns the loss of a piece, and adds its gradients to those that are there."""
    without_sync: Callable[[], AbstractContextManager[None]]
    """Keeps the gradients of a piece in this process, until the last piece's are shared."""
    drop_gradients: Callable[[], None]
    checkpoint: Callable[[], None]
    """Switches gradient checkpointing on."""


class MemoryFit:
    """The setting in force, and what has been computed of the step under way."""

    def __init__(self, setting: MemorySetting, checkpoints: bool, processes: int) -> None:
        """Begin with a setting, where the recipe checkpoints already or does not."""
        self.setting = setting
        self.say: Callable[[str], None] = lambda _: None
        """Tells a person of every change."""
        self._checkpoints = checkpoints
        self._processes = processes
        self._step: int | None = None
        self._computed: list[Batch] = []

    @property
    def position(self) -> int:
        """Return the place of the micro-batch under way among this process's of the step."""
        return max(0, len(self._computed) - 1)

    def compute(self, step: int, batch: Batch, computing: Computing) -> Tensor:
        """Compute a micro-batch's loss and gradients, in as many pieces as memory asks for.

        Raises:
            MachineError: memory ran out and there is nothing left to save, or other processes wait for this one.
        """
        if step != self._step:
            self._step, self._computed = step, []
        self._computed.append(batch)
        todo = [batch]
        while (loss := self._losses(todo, computing)) is None:
            if self._processes > 1:
                raise MachineError(
                    f"memory ran out at step {step + 1} in one of {self._processes} processes",
                    where="training",
                    hint="the others cannot begin a step again: lower training.tokens_per_micro_batch",
                )
            self._lower(batch, computing)
            todo = self._computed  # what did not fit has left a part of its gradients: the step begins again
        return loss

    def compute_first(self, step: int, batch: Batch, computing: Computing) -> Tensor | None:
        """Compute a micro-batch that is its own trial, on a CPU; none, and all as before, where memory ran out."""
        restore = _remember_generators()
        loss = self._losses([batch], computing)
        if loss is not None:
            self._step, self._computed = step, [batch]
            return loss
        computing.drop_gradients()
        gc.collect()
        restore()
        return None

    def try_out(self, largest: Batch, longest: Batch, computing: Computing, all_fit: Callable[[bool], bool]) -> None:
        """Compute for no update, and ask for less until it fits; no generator and no gradient is changed by it.

        Tried are the largest micro-batch and, where that has to be cut, the longest example, which cannot be.
        `all_fit` says whether it fitted every process, so that all of them ask for the same.

        Raises:
            MachineError: there is nothing left to save.
        """
        if self.setting.gradient_checkpointing:
            computing.checkpoint()
        with _generators_restored(), computing.without_sync():
            for batch in (largest, longest):
                while not all_fit(self._losses([batch], computing) is not None):
                    self._lower(batch, computing)
                if self.setting.tokens_per_micro_batch is None:
                    break
        computing.drop_gradients()

    def _losses(self, batches: Sequence[Batch], computing: Computing) -> Tensor | None:
        """Compute micro-batches and return the loss of the last; none where memory ran out."""
        try:
            for batch in batches:
                *first, last = cut(batch, self.setting.tokens_per_micro_batch)
                with computing.without_sync():
                    losses = [computing.add_gradients(piece) for piece in first]
                losses.append(computing.add_gradients(last))
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                return None  # only from here on nothing holds on to the tensors
            raise
        return torch.stack(losses).sum()

    def _lower(self, batch: Batch, computing: Computing) -> None:
        computing.drop_gradients()
        gc.collect()
        torch.cuda.empty_cache()
        largest = max(cut(batch, self.setting.tokens_per_micro_batch), key=size_of)
        if can_be_cut(largest):
            most = -(-size_of(largest) // 2)
            self._settle(MemorySetting(tokens_per_micro_batch=most), f"micro-batches of at most {most} tokens")
        elif not (self._checkpoints or self.setting.gradient_checkpointing):
            settled = self.setting.model_copy(update={"gradient_checkpointing": True})
            self._settle(settled, "with gradient checkpointing")
            computing.checkpoint()
        else:
            raise MachineError(
                f"memory ran out with a single example of {size_of(largest)} tokens and gradient checkpointing",
                where="training",
                hint="lower data.max_tokens or adapter.rank, add `quantization:`, or use a machine with more memory",
            )

    def _settle(self, setting: MemorySetting, how: str) -> None:
        self.setting = setting
        self.say(f"  memory ran out: it goes on {how}; a step has the same rows as before")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell an error that says that memory ran out from any other."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in OUT_OF_MEMORY)


def largest_micro_batch(micro_batches: Sequence[MicroBatch], lengths: Sequence[int], packed: bool) -> MicroBatch:
    """Return the micro-batch with the most tokens with padding, and of equals the one with the longest example."""
    return max(micro_batches, key=lambda batch: (tokens_of(batch, lengths, packed), max(lengths[i] for i in batch)))


def tokens_of(batch: MicroBatch, lengths: Sequence[int], packed: bool) -> int:
    """Count the tokens of a micro-batch with padding."""
    own = [lengths[i] for i in batch]
    return sum(own) if packed else max(own) * len(own)


@contextmanager
def _generators_restored() -> Iterator[None]:
    """Leave every generator as it was before a block, so that what is drawn in it changes nothing behind it."""
    restore = _remember_generators()
    with torch.random.fork_rng(device_type="cuda"):
        yield
    restore()


def _remember_generators() -> Callable[[], None]:
    """Return what sets this processor's generators to where they are now."""
    python, torchs = random.getstate(), torch.get_rng_state()
    global_numpy = np.random.get_state()  # libraries draw from this one

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(global_numpy)
        torch.set_rng_state(torchs)

    return restore
