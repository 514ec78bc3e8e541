"""What a plan says of the backward pass, against the bytes that torch's profiler counts."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_model import config_of
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaForCausalLM, PreTrainedModel

from evaluation.model import ModelSpec, Quantization, load_base
from finetune.adapter import build_adapter
from finetune.model_shape import PROJECTIONS, ModelShape
from finetune.plan_activations import (
    ActivationPath,
    Held,
    Layers,
    held_by_backward,
    saved_by_checkpoints,
    saved_by_layer,
)
from finetune.recipe import Adapter

pytestmark = pytest.mark.slow

RANK = 6
SHAPES = [ModelShape(3, 64, 256, 4, 2, 16, 300, tied=True), ModelShape(3, 80, 256, 4, 2, 20, 300, tied=True)]
FEW, MANY = 256, 768
"""Tokens; what a further one takes is told from two amounts, since weights that are unpacked take the same in both."""
ROW = 32


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: str(shape.hidden))
@pytest.mark.parametrize(
    ("path", "element"), [("plain", 2), ("plain", 4), ("autocast", 2), ("autocast_nf4", 2), ("uncast", 2)]
)
def test_the_backward_pass_of_a_checkpointed_layer_holds_what_is_said(
    path: ActivationPath, element: int, shape: ModelShape, masked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "autocast_nf4":  # peft asks whether a GPU's autocast is on (peft/tuners/lora/bnb.py)
        asked = torch.is_autocast_enabled
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: asked(*device) if device else True)
    layers = Layers(shape, PROJECTIONS, RANK, dora=False, dropout=False, element=element, path=path, dropout_mask=4)
    few, many = (Held(tokens // ROW, ROW, masked, tokens) for tokens in (FEW, MANY))
    said = (said_of(layers, many) - said_of(layers, few)) / (MANY - FEW)
    measured = (peak(layers, many, tmp_path) - peak(layers, few, tmp_path)) / (MANY - FEW)
    beside = 2 * element * shape.hidden  # the output and its gradient, which are held here all the time
    assert measured - beside == pytest.approx(said, abs=8 * RANK)


def said_of(layers: Layers, held: Held) -> int:
    return saved_by_checkpoints(layers, held) + saved_by_layer(layers, held) + held_by_backward(layers, held)


def peak(layers: Layers, held: Held, folder: Path) -> int:
    """Return the most bytes that the layers allocate from the start of the forward pass to the end of the backward."""
    model = build_adapter(base_of(layers, folder), Adapter(kind="lora", rank=RANK, targets=PROJECTIONS), 0).train()
    if layers.path == "uncast":
        model.to(torch.bfloat16)
    model.activation_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, layers.shape.vocabulary, (held.rows, held.row_tokens))
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0 if held.masked else 1
    cast_to = torch.autocast("cpu", torch.bfloat16) if "autocast" in layers.path else contextlib.nullcontext()
    inner = cast(Any, model.get_base_model()).model
    gc.collect()  # what is left of the model before would be let go of in between
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        with cast_to:
            output = inner(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        torch.autograd.backward(output, torch.ones_like(output))
    return highest(cast(Any, watched.profiler).kineto_results.events())


def highest(events: Any) -> int:
    """Add allocations and releases up in their order, and return the largest sum."""
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    live = most = 0
    for _, change in changes:
        live += change
        most = max(most, live)
    return most


def base_of(layers: Layers, folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    model = LlamaForCausalLM(config_of(layers.shape)).to(torch.bfloat16 if layers.element == 2 else torch.float32)
    if layers.path != "autocast_nf4":
        return model
    model.save_pretrained(folder)
    return load_base(ModelSpec(folder, quantization=Quantization(), dtype="bfloat16", device="cpu"))
