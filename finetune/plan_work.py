"""What a recipe's data come to: examples, tokens, steps, and the largest thing that is computed at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation.files import sha256_of_json
from finetune.batches import MicroBatch, micro_batches_in_step, plan_batches
from finetune.errors import DataError
from finetune.packed_batches import plan_packed_batches
from finetune.plan_activations import Held
from finetune.recipe import Recipe
from finetune.run_directory import RunDirectory

COUNTED = (".jsonl", ".csv", ".tsv")
"""Files with about a row a line."""


@dataclass(frozen=True)
class Lengths:
    """How long the training examples are, and how that is known."""

    tokens: tuple[int, ...]
    """Of each example; empty where nothing is prepared."""
    rows: int | None
    """Examples, as far as that is known."""
    assumed: str
    """A sentence about what they were taken from."""


@dataclass(frozen=True)
class Work:
    """What training goes through."""

    tokens_per_step: int
    """Tokens with padding, at most."""
    micro_batches_per_step: int
    held: Held
    """The largest micro-batch."""
    longest: int
    """Tokens of the longest example, which cannot be cut."""
    steps: int | None
    tokens: int | None
    """Tokens without padding of all epochs."""


def find_lengths(recipe: Recipe, run: Path) -> Lengths:
    """Read the lengths of the prepared examples of a run, or say what is assumed in their place."""
    file = run / "data" / "train.arrow"
    if file.exists() and _prepared_from(recipe, run):
        from finetune.example_files import load_examples, read_lengths  # pyarrow and datasets take a second

        tokens = tuple(read_lengths(load_examples(file)).tolist())
        if tokens:
            return Lengths(tokens, len(tokens), f"the {len(tokens):,} examples that are prepared in {run}")
    found = [_rows_of(source.source, source.limit) for source in recipe.data.train]
    rows = sum(count for count in found if count is not None) if None not in found else None
    said = f"about {rows:,} rows (limits and lines of files)" if rows is not None else "an unknown number of rows"
    how = f"{said}, every one as long as data.max_tokens; `finetune prepare` counts them"
    return Lengths((), rows, how)


def plan_work(recipe: Recipe, lengths: Lengths, devices: int) -> Work:
    """Plan the batches as training does, or from the limits of the recipe where no lengths are known.

    Raises:
        DataError: fewer examples than micro-batches in a step, or an example that no micro-batch can hold.
    """
    training = recipe.training
    per_step = micro_batches_in_step(training.tokens_per_step, training.tokens_per_micro_batch, devices)
    share = training.tokens_per_step // per_step
    longest = max(lengths.tokens) if lengths.tokens else min(recipe.data.max_tokens, share)
    if longest > share:
        raise DataError(
            f"the longest example has {longest} tokens, and a micro-batch {share}",
            where="training.tokens_per_step",
            hint=f"--set training.tokens_per_step={longest * per_step}",
        )
    if not lengths.tokens:
        return _from_limits(recipe, lengths, per_step)
    sizes = (training.tokens_per_step, training.tokens_per_micro_batch)
    largest, steps = _planned(lengths.tokens, sizes, devices, recipe.seed, packed=training.batches == "packed")
    tokens = sum(lengths.tokens) * training.epochs
    return Work(training.tokens_per_step, per_step, largest, longest, steps * training.epochs, tokens)


@functools.lru_cache(maxsize=64)
def _planned(
    lengths: tuple[int, ...], sizes: tuple[int, int | None], devices: int, seed: int, *, packed: bool
) -> tuple[Held, int]:
    """Plan one epoch (the others differ in their order), and return what is largest in it, and its steps.

    A mask counts where any micro-batch has one: rows of nearly one length take more with it than the longest without.
    """
    plan_by = plan_packed_batches if packed else plan_batches
    plan = plan_by(lengths, *sizes, devices, 1, seed)
    batches = [_held(batch, lengths, packed) for batch in plan.micro_batches]
    largest = max(batches, key=lambda h: (h.tokens, h.row_tokens))
    return replace(largest, masked=any(held.masked for held in batches)), plan.steps


def _held(batch: MicroBatch, lengths: Sequence[int], packed: bool) -> Held:
    sizes = [lengths[i] for i in batch]
    if packed:
        return Held(1, sum(sizes), masked=len(sizes) > 1, filled=sum(sizes))
    return Held(len(sizes), max(sizes), masked=min(sizes) < max(sizes), filled=sum(sizes))


def _from_limits(recipe: Recipe, lengths: Lengths, per_step: int) -> Work:
    training = recipe.training
    share = training.tokens_per_step // per_step
    longest = min(recipe.data.max_tokens, share)
    packed = training.batches == "packed"
    rows, row = (1, share) if packed else (max(1, share // longest), longest)
    held = Held(rows, row, masked=True, filled=rows * row)
    if lengths.rows is None:
        return Work(training.tokens_per_step, per_step, held, longest, None, None)
    tokens = lengths.rows * longest * training.epochs
    steps = math.ceil(lengths.rows / (held.rows * per_step)) * training.epochs
    return Work(training.tokens_per_step, per_step, held, longest, max(1, steps), tokens)


def _prepared_from(recipe: Recipe, run: Path) -> bool:
    """Tell whether what is prepared there comes from this recipe's data section."""
    marker = RunDirectory(run).marker("prepare")
    return marker is not None and marker.inputs.get("data") == sha256_of_json(recipe.data.model_dump(mode="json"))


def _rows_of(source: str, limit: int | None) -> int | None:
    """Return how many rows a source has at most, where that is to be had without reading them as rows."""
    file = Path(source)
    if not (file.suffix in COUNTED and file.is_file()):
        return limit
    with file.open("rb") as stream:
        lines = sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
    return min(lines, limit) if limit is not None else lines
