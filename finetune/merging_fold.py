"""Folds an adapter into full-precision weights, in fp32, and never into a 4-bit base.

A 4-bit base rounds the small update away: 1.3 % of it survived in a measurement (docs/log.md). What is folded into is
either the original weights or the dequantized ones that the forward pass of training used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from evaluation.inference import LanguageModel
from evaluation.model import DTYPES, ModelSpec, dequantized_weights, load_base
from evaluation.rendering import Renderer
from evaluation.tokenizer import load_tokenizer

Onto = Literal["full_precision", "dequantized"]


@dataclass(frozen=True)
class Folding:
    """What is folded: the model as it was trained, and the fp32 weights to fold into."""

    trained: ModelSpec
    """The base as in training (perhaps 4-bit) with its adapter."""
    onto: Onto


def load_unfolded(folding: Folding) -> LanguageModel:
    """Load the adapter, unmerged, on the fp32 base that it is going to be folded into.

    On the CPU, whatever it was trained on: four bytes a parameter are more than the GPU of a QLoRA run has to spare.
    """
    model = load_base(replace(folding.trained, quantization=None, dtype="float32", adapter=None, device="cpu"))
    if folding.onto == "dequantized":
        _use_dequantized(model, folding.trained)
    else:
        _round_to(model, DTYPES[folding.trained.dtype])
    assert folding.trained.adapter is not None
    adapted = PeftModel.from_pretrained(model, str(folding.trained.adapter), local_files_only=True).eval()
    return LanguageModel(adapted, Renderer(load_tokenizer(folding.trained.adapter)))


def fold(unfolded: LanguageModel) -> LanguageModel:
    """Fold in fp32 and return the plain model; the unmerged one is used up."""
    assert isinstance(unfolded.model, PeftModel)
    merged: PreTrainedModel = unfolded.model.merge_and_unload(safe_merge=True)
    return LanguageModel(merged.eval(), unfolded.renderer)


def save_merged(merged: LanguageModel, folder: Path, dtype: str) -> None:
    """Write weights of the given type, configuration, tokenizer and chat template.

    The settings name the tokens that training ended answers with, so that plain transformers stops where scoring does.
    """
    model = merged.causal_lm.to(dtype=DTYPES[dtype])  # type: ignore[call-arg]  # transformers wraps it untyped
    model.config._name_or_path = ""  # transformers writes it, and it is a local path
    if model.generation_config is not None:
        model.generation_config.eos_token_id = list(merged.renderer.stop_ids())
    model.save_pretrained(str(folder))
    merged.renderer.tokenizer.save_pretrained(str(folder))


def _use_dequantized(model: PreTrainedModel, trained: ModelSpec) -> None:
    quantized = load_base(replace(trained, adapter=None))
    _round_to(model, DTYPES[trained.dtype])
    with torch.no_grad():
        for name, weight in dequantized_weights(quantized):
            model.get_parameter(name).copy_(weight)


def _round_to(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round fp32 weights to the values of a base of this type: fp32 is the arithmetic, not another base."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
