"""`finetune plan`: what a recipe takes before it is run: memory by term, steps, time, cost, and what would fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune.errors import Problem, RecipeError
from finetune.machine import computes_bfloat16, settle_dtypes
from finetune.plan_base import KnownBase, find_base
from finetune.plan_devices import choose_device
from finetune.plan_fit import Asked, Change, Fit, find_changes, fit, fits, gpus_if_sharded, most_demanding
from finetune.plan_probe import Probe, Rate
from finetune.plan_work import Lengths, find_lengths
from finetune.recipe import Recipe

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Question:
    """What the command line asks."""

    device: str | None = None
    memory: str | None = None
    rate: float | None = None
    """Tokens a second of one device."""
    price: float | None = None
    """Of one device for an hour, in whatever currency."""


@dataclass(frozen=True)
class Time:
    """How long training takes; preparing, merging and scoring are not in it."""

    rate: Rate
    seconds: float
    low: float
    """From the upper end of the rate's interval."""
    high: float | None
    """From the lower end; nothing where that is 0."""
    cost: float | None


@dataclass(frozen=True)
class Plan:
    """Everything that is known of a run before it."""

    recipe: Recipe
    base: KnownBase
    asked: Asked
    fit: Fit
    changes: tuple[Change, ...]
    """Nothing where it fits as it is."""
    sharded_over: int | None
    """GPUs over which it would fit if it were sharded; where nothing else does."""
    time: Time | None
    probe: Probe | None

    @property
    def fits(self) -> bool:
        """Tell whether the recipe fits as it is."""
        return fits(self.fit, self.asked.device)


def plan(recipe: Recipe, question: Question, run: Path, cache: Path, probed: Probe | None = None) -> Plan:
    """Plan a run from its recipe and what is on this disk; `run` is where its prepared rows are looked for.

    Raises:
        RecipeError: no such device or amount of memory.
        DataError: the base's sizes are not known here, or its batches cannot be planned.
    """
    device = choose_device(question.device, question.memory)
    recipe = settle_dtypes(recipe, bfloat16=device.kind == "cuda" or computes_bfloat16())
    base = find_base(recipe.base, cache)
    devices = recipe.training.devices
    if devices == "all":
        raise RecipeError([Problem("training.devices", "`all` is not known before the run", "state it: --devices 4")])
    lengths = _probed_lengths(probed) if probed else find_lengths(recipe, run)
    asked = Asked(base.shape, base.stored_bytes, lengths, device, devices)
    found = fit(recipe, asked)
    changes: list[Change] = [] if fits(found, device) else find_changes(recipe, asked)
    sharded = None
    if not fits(found, device) and not changes and device.kind == "cuda":
        sharded = gpus_if_sharded(most_demanding(recipe), asked, found.work.held)
    rate = _rate(question, probed)
    time = _time(rate, found, asked, question.price) if rate else None
    return Plan(recipe, base, asked, found, tuple(changes), sharded, time, probed)


def _probed_lengths(probed: Probe) -> Lengths:
    count = len(probed.lengths)
    return Lengths(probed.lengths, count, f"the {count:,} examples that the probe prepared")


def _rate(question: Question, probed: Probe | None) -> Rate | None:
    if question.rate is not None:
        return Rate(question.rate, question.rate, question.rate, "as stated")
    return probed.rate if probed else None


def _time(rate: Rate, found: Fit, asked: Asked, price: float | None) -> Time | None:
    """Divide the tokens by the rate of all devices, as if each were as quick as one alone."""
    if found.work.tokens is None:
        return None
    tokens = found.work.tokens / asked.devices
    seconds = tokens / rate.tokens_per_second
    cost = seconds / SECONDS_PER_HOUR * price * asked.devices if price is not None else None
    return Time(rate, seconds, tokens / rate.high, tokens / rate.low if rate.low else None, cost)
