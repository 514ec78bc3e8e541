"""Folds an adapter into full-precision weights, in fp32, and never into a 4-bit base.

A 4-bit base rounds the small update away: 1.3 % of it survived in a measurement (docs/log.md). What is folded into is
either the original weights or the dequantized ones that the forward pass of training used.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from evaluation.inference import LanguageModel
from evaluation.model import DTYPES, ModelSpec, choose_device, dequantized_weights, load_base
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
    """Load the adapter, unmerged, on the fp32 base that it is going to be folded into, where it can be compared."""
    model = load_base(replace(folding.trained, quantization=None, dtype="float32", adapter=None, device="cpu"))
    if folding.onto == "dequantized":
        _use_dequantized(model, folding.trained)
    else:
        _round_to(model, DTYPES[folding.trained.dtype])
    assert folding.trained.adapter is not None
    adapted = PeftModel.from_pretrained(model, str(folding.trained.adapter), local_files_only=True).eval()
    adapted.to(device_to_compare_on(adapted, folding.trained.device))
    return LanguageModel(adapted, Renderer(load_tokenizer(folding.trained.adapter)))


def fold(unfolded: LanguageModel) -> LanguageModel:
    """Fold in fp32 and return the plain model, on the same device; the unmerged one is used up.

    The sums are a CPU's, so that the bytes of a merge do not depend on where it is compared.
    """
    assert isinstance(unfolded.model, PeftModel)
    device = unfolded.causal_lm.device
    merged: PreTrainedModel = unfolded.model.to("cpu").merge_and_unload(safe_merge=True)
    merged.eval().to(device)
    return LanguageModel(merged, unfolded.renderer)


def device_to_compare_on(model: torch.nn.Module, wanted: str) -> str:
    """Return the GPU that was asked for or is there if the model takes at most half of its free memory, else `cpu`.

    The other half is for activations and for what was saved. A GPU that rounds fp32 products to TF32, as some
    containers have it do (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE), proves nothing of fp32.
    """
    device = choose_device(wanted)
    if device == "cpu" or torch.get_float32_matmul_precision() != "highest":
        return "cpu"
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return device if 2 * needed <= free_memory(device) else "cpu"


def free_memory(device: str) -> int:
    """Return the bytes of a GPU that no tensor takes, those of models that nothing refers to any more with them."""
    gc.collect()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


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
