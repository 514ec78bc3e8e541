"""The one place that loads a model: training, merging and scoring load through it and cannot disagree.

Nothing but safetensors is read, nothing is fetched, and no code of a model folder is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit
from bitsandbytes.optim.optimizer import GlobalOptimManager
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from evaluation.adapter_files import WEIGHTS_FILE, check_adapter_config, check_adapter_weights
from evaluation.allocator import limit_compiled_products
from evaluation.errors import DataError, MachineError
from evaluation.files import sha256_of_folder
from evaluation.model_files import check_model_files
from evaluation.nf4_quantizing import quantize_quickly

Attention = Literal["sdpa", "eager", "flash_attention_2", "varlen"]
"""`varlen` is registered by finetune.varlen_attention, for packed rows on a GPU; the others are transformers' own."""

_UNREADABLE = (SafetensorError, LookupError, ValueError, ArithmeticError, RecursionError, TypeError)
"""What transformers raises on a configuration that makes no model; RuntimeError with the name of this option on weights
of other shapes."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Quantization:
    """How the weights of linear layers are stored: 4 bits (NF4), or 8 with outliers apart (LLM.int8)."""

    kind: Literal["nf4", "int8"] = "nf4"
    double_quant: bool = True
    """Of NF4 alone."""

    def __str__(self) -> str:
        return f"{self.kind}{'-double' if self.kind == 'nf4' and self.double_quant else ''}"


@dataclass(frozen=True)
class ModelSpec:
    """What to load: a folder of safetensors, an optional adapter folder, and in which form."""

    path: Path
    adapter: Path | None = None
    quantization: Quantization | None = None
    dtype: str = "bfloat16"
    device: str = "auto"
    attention: Attention = "sdpa"

    def sha256(self) -> tuple[str, str | None]:
        """Hash the model's folder and the adapter's, file by file."""
        return sha256_of_folder(self.path), sha256_of_folder(self.adapter) if self.adapter else None


def load_model(spec: ModelSpec) -> PreTrainedModel | PeftModel:
    """Load the weights of a model, with its adapter if it has one, in evaluation mode.

    Raises:
        DataError: no safetensors weights, or an adapter that does not fit the model.
        MachineError: the device is not there.
    """
    base = load_base(spec)
    return base if spec.adapter is None else _load_adapter(base, spec.adapter)


def load_base(spec: ModelSpec) -> PreTrainedModel:
    """Load the weights of a model without its adapter, in evaluation mode.

    Raises:
        DataError: no safetensors weights.
        MachineError: the device is not there.
    """
    check_model_files(spec.path)
    limit_compiled_products()
    transformers_logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            spec.path,
            dtype=DTYPES[spec.dtype],
            **_quantization_options(spec.quantization, DTYPES[spec.dtype]),
            device_map={"": choose_device(spec.device)},
            attn_implementation=spec.attention,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (*_UNREADABLE, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" not in str(error):
            raise  # such as memory that ran out
        raise DataError(f"the weights cannot be read: {_first_line(error)}", where=str(spec.path)) from error
    keep_cpu_weights_unpacked(model)
    return cast(PreTrainedModel, model.eval())


def stored_dtype(folder: Path) -> str:
    """Read the type in which a model's folder says that its weights are stored."""
    return str(json.loads((folder / "config.json").read_bytes()).get("dtype", "float32"))


def causal_lm_of(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the causal language model itself, whose layers hold the adapters, if there are any."""
    return cast(PreTrainedModel, model.get_base_model()) if isinstance(model, PeftModel) else model


def choose_device(wanted: str = "auto") -> str:
    """Return `cuda:0` where there is a GPU and else `cpu`, or what was asked for.

    Raises:
        MachineError: a GPU was asked for and there is none.
    """
    if wanted == "auto":
        return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise MachineError(f"there is no GPU for device {wanted!r}", hint="use --device cpu, or a machine with CUDA")
    return wanted


def keep_cpu_weights_unpacked(model: torch.nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in place on processors with AVX512-BF16.

    The first forward in evaluation mode would do so, and the packed form has no gradient and is not understood by
    dequantization: later training steps lose their gradients and later merges are scrambled, in silence.
    Upstream: https://github.com/bitsandbytes-foundation/bitsandbytes/issues/2078, open at bitsandbytes 0.50.2.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def forget_embeddings() -> None:
    """Empty bitsandbytes' list of the embeddings whose optimizer states stay in 32 bits.

    transformers 5.23 fills it for every 8-bit optimizer (`Trainer.create_optimizer`), and nothing empties it: a base's
    embedding stayed on the GPU until the process ended (docs/log.md). A frozen one has no states.
    """
    cast(Any, GlobalOptimManager.get_instance()).module_weight_config_triple.clear()


def assert_unpacked(model: torch.nn.Module) -> None:
    """Check that no 4-bit weight was repacked for the CPU since loading."""
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            state = cast(Any, module.weight).quant_state
            assert not getattr(state, "packing_format_for_cpu", False), f"{name} was repacked by bitsandbytes"


def dequantized_weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of every 4-bit layer as the forward pass sees them: name, (out, in) in fp32."""
    assert_unpacked(model)
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            dense = dequantize_4bit(module.weight.data, cast(Any, module.weight).quant_state)
            yield f"{name}.weight", dense.float()


def frozen_weight(layer: torch.nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight of a frozen layer, (out, in); a 4-bit one is unpacked at each call, and kept by nobody."""
    if isinstance(layer, Linear4bit):
        dense: torch.Tensor = dequantize_4bit(layer.weight.data, cast(Any, layer.weight).quant_state)
        return dense.to(dtype)
    return layer.weight


@dataclass(frozen=True)
class PackedWeight:
    """A weight in NF4 as bitsandbytes stores it, row by row (https://arxiv.org/abs/2305.14314)."""

    pairs: torch.Tensor
    """Two weights a byte, the first in its upper half: each the number of a level."""
    levels: torch.Tensor
    block: int
    """Weights that share a scale, with which their levels are multiplied."""
    scales: torch.Tensor
    """In fp32: of the blocks, or, where these are quantized themselves, of their blocks."""
    scale_bytes: torch.Tensor | None
    """Of each block: the number of a level in `scale_levels`. That times a scale, plus the offset, is its scale."""
    scale_levels: torch.Tensor | None
    blocks: int
    offset: float


def packed_weight(layer: torch.nn.Linear) -> PackedWeight | None:
    """Return the weight of a layer in NF4 on the CPU, as it lies there; none for any other layer."""
    if not isinstance(layer, Linear4bit) or layer.weight.device.type != "cpu":
        return None
    state = cast(Any, layer.weight).quant_state
    if state.quant_type != "nf4" or layer.weight.dtype != torch.uint8:
        return None
    assert not getattr(state, "packing_format_for_cpu", False), "repacked by bitsandbytes"
    packed = layer.weight.data
    if not state.nested:
        return PackedWeight(packed, state.code, state.blocksize, state.absmax, None, None, 1, 0.0)
    of_scales = state.state2
    return PackedWeight(
        packed,
        state.code,
        state.blocksize,
        of_scales.absmax,
        state.absmax,
        of_scales.code,
        of_scales.blocksize,
        float(state.offset),
    )


def is_dense(layer: torch.nn.Linear) -> bool:
    """Say whether the weight of a layer is stored as what it is computed with."""
    return type(layer) is torch.nn.Linear


def _quantization_options(quantization: Quantization | None, dtype: torch.dtype) -> dict[str, BitsAndBytesConfig]:
    if quantization is None:
        return {}  # None, passed on, would take a quantized folder for one that is not
    if quantization.kind == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    quantize_quickly()
    form = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.kind,
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": form}


def _load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    check_adapter_config(folder)
    found = check_adapter_weights(folder)
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), local_files_only=True, low_cpu_mem_usage=False)
    except (RuntimeError, ValueError, SafetensorError) as error:
        raise DataError(f"the adapter does not fit the base: {_first_line(error)}", where=str(folder)) from error
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if expected != found:
        odd = sorted(expected ^ found)
        raise DataError(
            f"{len(odd)} adapter tensors are missing or belong to no layer of the base, first {odd[0]!r}",
            where=str(folder / WEIGHTS_FILE),
        )
    return adapted.eval()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
