"""What is kept of a training that was stopped at something not finite: the rows that did it, and the last good adapter.

stopped/rows.jsonl   the rows of the batch, by file and line, with their lengths and never with their text
stopped/adapter/     the adapter as it was before (stopped/adapter-1/ where process 1 alone met it)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from evaluation.files import staged_folder, write_jsonl
from finetune.batches import MicroBatch
from finetune.errors import TrainingStopped
from finetune.example_files import TRAIN_ROWS, count_trained, read_lengths
from finetune.training_guards import NotFinite, WeightGuard
from finetune.training_job import TrainingJob
from finetune.training_records import StoppedRow
from finetune.training_trainer import Batching, RecipeTrainer

WRITTEN_SECONDS = 60
"""How long the other processes wait for the first one to write."""


@dataclass(frozen=True)
class Witness:
    """What a process can tell of its training when it is stopped."""

    job: TrainingJob
    trainer: RecipeTrainer
    weights: WeightGuard
    write_adapter: Callable[[Path], None]


@contextmanager
def keeping_evidence(witness: Witness) -> Iterator[None]:
    """Write down what is known where a block is stopped by something not finite.

    Raises:
        TrainingStopped: the same, and where the rows and the adapter are.
    """
    try:
        yield
    except NotFinite as fault:
        told = _testify(witness, fault)
        raise TrainingStopped(f"{fault.what}. {told}", where=fault.where, hint=fault.hint) from fault


def _testify(witness: Witness, fault: NotFinite) -> str:
    """Write the adapter and, last of all, the rows; say where they are."""
    batching, stopped = witness.trainer.batching, witness.job.run.stopped
    alone = fault.position is not None  # all processes meet a gradient or a weight, and one of them a loss
    folder = stopped / (f"adapter-{batching.rank}" if alone and batching.rank else "adapter")
    rows = stopped / "rows.jsonl"
    steps = witness.weights.settle(witness.trainer.state.global_step)
    if alone or batching.rank == 0:
        if steps:
            with staged_folder(folder) as staging:
                witness.write_adapter(staging)
        write_jsonl(rows, _rows(witness, batch_of(batching, fault.step, fault.position)))
    else:
        _wait_for(rows)  # the first process that ends has torchrun end the others
    kept = f", and the adapter of step {steps} is in {folder}" if steps else "; nothing had been learned before it"
    return f"The rows of its batch are listed in {rows}{kept}"


def batch_of(batching: Batching, step: int, position: int | None) -> list[tuple[int, MicroBatch]]:
    """Return (number from 1, examples) of the micro-batches of a step, or of the process's own one at a position."""
    size = batching.plan.micro_batches_per_step
    numbered = list(enumerate(batching.plan.micro_batches[(step - 1) * size : step * size], start=1))
    return numbered if position is None else [numbered[batching.rank :: batching.world_size][position]]


def _rows(witness: Witness, batches: Sequence[tuple[int, MicroBatch]]) -> Iterator[StoppedRow]:
    examples = witness.trainer.examples
    lengths, trained = read_lengths(examples), count_trained(examples)
    names = _names(witness.job.run.data / TRAIN_ROWS, {index for _, batch in batches for index in batch})
    for number, batch in batches:
        for index in batch:
            yield StoppedRow(
                micro_batch=number,
                example=index,
                row=names.get(index),
                tokens=int(lengths[index]),
                trained_tokens=int(trained[index]),
            )


def _names(file: Path, wanted: set[int]) -> dict[int, str]:
    """Read where examples come from; nothing is known of those that an older version has prepared."""
    if not file.exists():
        return {}
    with file.open(encoding="utf-8") as lines:
        first = islice(lines, max(wanted) + 1)
        return {index: line.rstrip("\n") for index, line in enumerate(first) if index in wanted}


def _wait_for(file: Path) -> None:
    until = time.monotonic() + WRITTEN_SECONDS
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.05)
