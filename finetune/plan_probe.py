"""Measures the rate of training on this machine: a recipe's first steps by its own trainer, which is then stopped.

Rows are prepared and trained on in a temporary run folder; what was learned goes with it.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from finetune.bases import resolve_base
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.machine import computes_bfloat16, peak_memory_bytes, settle_dtypes
from finetune.recipe_file import LoadedRecipe
from finetune.run_directory import RunDirectory
from finetune.training_records import StepMetrics

STEPS = 20
WARM_UP = 2
"""Steps at the beginning that are not counted, while threads, kernels and the allocator warm up."""
TWO_SIDED_95 = 1.96


@dataclass(frozen=True)
class Rate:
    """Tokens without padding a second on one device."""

    tokens_per_second: float
    low: float
    """Lower end of the 95 % interval of the mean."""
    high: float
    said: str
    """Where it is from."""


@dataclass(frozen=True)
class Probe:
    """What the first steps were like."""

    rate: Rate
    lengths: tuple[int, ...]
    """Tokens of every training example."""
    peak_memory_bytes: int
    """Of this process, the preparation of the rows included; of a GPU, what torch allocated."""


class _Enough(Exception):
    """The steps of a probe are done."""


@dataclass
class _StopAfter:
    """Asks training to end after so many steps."""

    steps: int

    def finish_first(self) -> None:
        """Have nothing wait: nobody sends this a signal."""

    def asked(self) -> bool:
        """Count a step, and ask once they are enough."""
        self.steps -= 1
        return self.steps <= 0

    def end(self, what: str) -> NoReturn:
        """End."""
        raise _Enough(what)


def probe(loaded: LoadedRecipe, cache: Path, reporter: Reporter) -> Probe:
    """Prepare the rows of a recipe and train its first steps on one device of this machine.

    Raises:
        UserError: whatever stops preparation or training, or too few steps to tell a rate from.
    """
    # These import torch and TRL, which takes seconds that a plan without a probe does without.
    from finetune.example_files import load_examples, read_lengths
    from finetune.pipeline import run_recipe
    from finetune.training import train
    from finetune.training_job import TrainingJob

    recipe = settle_dtypes(loaded.recipe, bfloat16=computes_bfloat16())
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"devices": 1})})
    with tempfile.TemporaryDirectory(prefix="finetune-probe-") as scratch:
        run = RunDirectory(Path(scratch) / "run")
        run_recipe(loaded, run.folder, cache, reporter, "prepare")
        base = resolve_base(recipe.base, cache, reporter.say)
        job = TrainingJob(
            recipe=recipe,
            run_folder=run.folder,
            base_folder=base.folder,
            base_name=base.published[0],
            base_revision=None,
            devices=1,
        )
        try:
            train(job, reporter, _StopAfter(STEPS))
        except _Enough:
            file = max(run.checkpoints.glob("step-*")) / "metrics.jsonl"
        else:
            file = run.training / "metrics.jsonl"  # the whole training is shorter than a probe
        lines = [StepMetrics.model_validate_json(line) for line in file.read_text(encoding="utf-8").splitlines()]
        lengths = tuple(read_lengths(load_examples(run.data / "train.arrow")).tolist())
    return Probe(rate_of(lines), lengths, _peak_memory())


def rate_of(steps: Sequence[StepMetrics]) -> Rate:
    """Return the mean rate of steps after the warm-up, with the 95 % interval of a mean of independent steps.

    Steps differ in their tokens, so the rate is tokens over seconds of all, and the spread that of a step's seconds
    for its tokens (the delta method for a ratio of means).

    Raises:
        DataError: fewer than three steps are left after the warm-up.
    """
    counted = list(zip(steps[WARM_UP - 1 : -1], steps[WARM_UP:], strict=True))
    if len(counted) < 3:
        raise DataError(
            f"{len(steps)} steps are too few to tell a rate from",
            where="--probe",
            hint=f"at least {WARM_UP + 3} are needed: raise training.epochs, lower training.tokens_per_step",
        )
    tokens = [after.tokens - before.tokens for before, after in counted]
    seconds = [after.seconds - before.seconds for before, after in counted]
    rate = sum(tokens) / sum(seconds)
    off = [token - rate * second for token, second in zip(tokens, seconds, strict=True)]
    error = math.sqrt(len(off)) * statistics.stdev(off) / sum(seconds)
    said = f"{len(counted)} steps on this machine, after {WARM_UP} that warm up"
    return Rate(rate, max(0.0, rate - TWO_SIDED_95 * error), rate + TWO_SIDED_95 * error, said)


def _peak_memory() -> int:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory_bytes()
