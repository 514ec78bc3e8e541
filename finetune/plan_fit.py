"""What a recipe takes on a device, and the smallest change of it that fits where it does not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from finetune.capabilities import Choices, Machine, choose
from finetune.errors import DataError
from finetune.model_shape import PROJECTIONS, ModelShape
from finetune.plan_activations import FP32, ActivationPath, Held, Layers
from finetune.plan_devices import Device
from finetune.plan_memory import Memory, Setup, predict
from finetune.plan_work import Lengths, Work, plan_work
from finetune.recipe import Quantization, Recipe

MOST_GPUS = 64
"""GPUs that a sharded training is thought over at most."""
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Asked:
    """What is planned for."""

    shape: ModelShape
    stored_bytes: int
    """Size of the base's files."""
    lengths: Lengths
    device: Device
    devices: int


@dataclass(frozen=True)
class Fit:
    """What a recipe takes, and what it goes through."""

    recipe: Recipe
    work: Work
    memory: Memory


@dataclass(frozen=True)
class Change:
    """A change of the recipe that makes it fit."""

    settings: tuple[str, ...]
    """For `--set`."""
    costs: str
    """What it costs, in words."""
    fit: Fit


def fit(recipe: Recipe, asked: Asked) -> Fit:
    """Predict what a recipe takes on a device."""
    work = plan_work(recipe, asked.lengths, asked.devices)
    return Fit(recipe, work, predict(setup_of(recipe, asked, work.held)))


def setup_of(recipe: Recipe, asked: Asked, held: Held) -> Setup:
    """Translate a recipe, whose types are settled, into what memory follows from."""
    choices = planned_choices(asked.device, recipe)
    adapter, quantization = recipe.adapter, recipe.quantization
    layers = Layers(
        shape=asked.shape,
        targets=PROJECTIONS if adapter.targets == "all-linear" else adapter.targets,
        rank=adapter.rank,
        dora=adapter.variant == "dora",
        dropout=adapter.dropout > 0,
        element=ELEMENT_BYTES[recipe.base.dtype],
        path=_activation_path(choices, quantization),
        dropout_mask=4 if asked.device.kind == "cpu" else 1,
    )
    return Setup(
        layers=layers,
        held=replace(held, masked=held.masked and choices.attention == "sdpa"),  # flash kernels take none
        device=asked.device.kind,
        nf4="no" if quantization is None else "double" if quantization.double_quant else "single",
        checkpointing=recipe.training.gradient_checkpointing,
        optimizer="8bit" if choices.optimizer == "paged_adamw_8bit" else "fp32",
        loss=choices.loss,
        adapter_element=FP32,
        stored_bytes=asked.stored_bytes,
    )


def _activation_path(choices: Choices, quantization: Quantization | None) -> ActivationPath:
    if not choices.bf16_autocast:
        return choices.layers
    return "autocast" if quantization is None else "autocast_nf4"


def planned_choices(device: Device, recipe: Recipe) -> Choices:
    """Choose as training does there: a GPU has what comes with torch on Linux, Triton and flash attention."""
    cuda = device.kind == "cuda"
    return choose(Machine(cuda=cuda, cuda_capability=(8, 0), triton=cuda, varlen=cuda), recipe)


def find_changes(recipe: Recipe, asked: Asked) -> list[Change]:
    """Find what fits, the smallest change first.

    First what changes nothing that is learned: smaller micro-batches, then checkpointing (both may be needed). Then
    a 4-bit base, and last shorter examples. Of each, the largest micro-batch that fits is taken.
    """
    found = []
    for settings, costs, changed in _steps(recipe):
        settled = _largest_micro_batch(changed, asked)
        if settled is None:
            continue
        most = settled.recipe.training.tokens_per_micro_batch
        cut = most != recipe.training.tokens_per_micro_batch
        lines = (*settings, *((f"training.tokens_per_micro_batch={most}",) if cut else ()))
        said = [*costs, *(["more and smaller micro-batches"] if cut else [])]
        found.append(Change(lines, "; ".join(said), settled))
    return found or _shorter(recipe, asked)


def gpus_if_sharded(recipe: Recipe, asked: Asked, held: Held) -> int | None:
    """Return over how many such GPUs weights, gradients and optimizer would have to be sharded (FSDP) to fit.

    One layer and the embeddings are gathered at a time (https://arxiv.org/abs/2304.11277, section 3.2).
    """
    memory, shape = predict(setup_of(recipe, asked, held)), asked.shape
    whole = memory.weights + memory.quantization + memory.adapter + memory.gradients + memory.optimizer
    gathered = memory.weights // shape.layers
    room = asked.device.usable - (memory.total - whole) - gathered
    count = math.ceil(whole / room) if room > 0 else MOST_GPUS + 1
    return count if count <= MOST_GPUS else None


def fits(found: Fit, device: Device) -> bool:
    """Tell whether it fits."""
    return found.memory.total <= device.usable


def most_demanding(recipe: Recipe) -> Recipe:
    """Return a recipe with everything that saves memory and changes no example."""
    return _checkpointed(_in_4_bits(recipe))


def _steps(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], Recipe]]:
    checkpointing = ("training.gradient_checkpointing=true",), ("about a third slower",)
    nf4 = ("quantization.kind=nf4",), ("a base in 4 bits, which changes what is learned (QLoRA)",)
    can_checkpoint, can_quantize = not recipe.training.gradient_checkpointing, recipe.quantization is None
    yield (), (), recipe
    if can_checkpoint:
        yield *checkpointing, _checkpointed(recipe)
    if can_quantize:
        yield *nf4, _in_4_bits(recipe)
    if can_checkpoint and can_quantize:
        yield nf4[0] + checkpointing[0], nf4[1] + checkpointing[1], most_demanding(recipe)


def _largest_micro_batch(recipe: Recipe, asked: Asked) -> Fit | None:
    """Halve micro-batches until they fit, or until the longest example is alone in one."""
    most: int | None = recipe.training.tokens_per_micro_batch
    per_device = -(-recipe.training.tokens_per_step // asked.devices)
    while True:
        changed = _with_training(recipe, tokens_per_micro_batch=most)
        try:
            found = fit(changed, asked)
        except DataError:
            return None  # an example is longer than a micro-batch, or there are too few of them
        if fits(found, asked.device):
            return found
        if not asked.lengths.tokens and found.work.longest < min(recipe.data.max_tokens, per_device):
            return None  # examples would have to be shorter than the recipe allows
        most = (most or per_device) // 2
        if most < max(8, found.work.longest):
            return None


def _shorter(recipe: Recipe, asked: Asked) -> list[Change]:
    """Halve the longest example, with everything else that saves memory, until it fits."""
    saving = most_demanding(recipe)
    longest = recipe.data.max_tokens
    settings = tuple(line for lines, _, changed in _steps(recipe) if changed == saving for line in lines)
    rows = Lengths((), asked.lengths.rows, asked.lengths.assumed)
    while longest >= 32:
        longest //= 2
        shorter = saving.model_copy(update={"data": saving.data.model_copy(update={"max_tokens": longest})})
        shorter = _with_training(shorter, tokens_per_micro_batch=longest)
        found = fit(shorter, Asked(asked.shape, asked.stored_bytes, rows, asked.device, asked.devices))
        if fits(found, asked.device):
            lines = (*settings, f"data.max_tokens={longest}", f"training.tokens_per_micro_batch={longest}")
            costs = "longer rows are refused, dropped or shortened, as data.overflow says"
            return [Change(lines, costs, found)]
    return []


def _checkpointed(recipe: Recipe) -> Recipe:
    return _with_training(recipe, gradient_checkpointing=True)


def _in_4_bits(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"quantization": recipe.quantization or Quantization(kind="nf4")})


def _with_training(recipe: Recipe, **changed: int | bool | None) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changed)})
