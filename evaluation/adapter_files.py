"""Looks at a stranger's adapter folder before peft does: what could run code or never end, and weights that are none.

peft imports the module that `megatron_core` names (peft/tuners/lora/tp_layer.py, 0.21.2), reads pickles for some of
its other methods, and matches layer names against regular expressions of the folder.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evaluation.errors import DataError

LARGEST_RANK = 16_384
"""peft makes room for the factors that the settings speak of before it looks at the weights."""
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_OTHER_FILES = ("megatron_config", "megatron_core", "path_initial_model_for_weight_conversion", "arrow_config")
_MEGATRON = "megatron.core"  # peft's default, which is written into every configuration
_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "target_parameters")
_PATTERN_KEYS = ("rank_pattern", "alpha_pattern")
_NUMBERS = (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern"))
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LONGEST_PATTERN = 500
_LARGEST_CONFIG = 1_000_000
_MOST_REPEATS = 4
_REPEAT = re.compile(r"(?<!\\)[*+{]")
_REPEATED_GROUP = re.compile(r"(?<!\\)\)[*+{]")


def check_adapter_config(folder: Path) -> None:
    """Check that a folder's settings are those of a LoRA that peft can load without running or reading anything else.

    Raises:
        DataError: names the setting.
    """
    file = folder / CONFIG_FILE
    config = _read(file)
    if config.get("peft_type") != "LORA":
        raise DataError(f"its kind is {str(config.get('peft_type'))[:40]}; accepted: LORA", where=str(file))
    for name in _OTHER_FILES:
        if config.get(name) not in (None, "", _MEGATRON):
            raise DataError(f"{name} names something beside the adapter, which is never loaded", where=str(file))
    ranks, alphas = ([config.get(key), *_values(config.get(kind))] for key, kind in _NUMBERS)
    if not all(isinstance(rank, int | float) and 1 <= rank <= LARGEST_RANK for rank in ranks):
        raise DataError(f"r and rank_pattern: a rank is a number from 1 to {LARGEST_RANK:,}", where=str(file))
    if not all(isinstance(alpha, int | float) and math.isfinite(alpha) for alpha in alphas):
        raise DataError("lora_alpha and alpha_pattern: not a finite number", where=str(file))
    for name in (*_PATTERNS, *_PATTERN_KEYS):
        for pattern in _patterns(config.get(name)):
            if not is_quick(pattern):
                what = f"{name}: the pattern {pattern[:60]!r} could take for ever"
                raise DataError(what, where=str(file), hint="list the names of the modules")


def is_quick(pattern: str) -> bool:
    """Say whether a regular expression ends soon on a name of some dozen characters: no repeated group, few repeats."""
    repeats = len(_REPEAT.findall(pattern))
    return len(pattern) <= _LONGEST_PATTERN and repeats <= _MOST_REPEATS and not _REPEATED_GROUP.search(pattern)


def check_adapter_weights(folder: Path) -> frozenset[str]:
    """Read every tensor of an adapter once, and return their names.

    Raises:
        DataError: there are none, the file is damaged, or a tensor is not finite, or zero throughout.
    """
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise DataError(f"no {WEIGHTS_FILE} in this folder", where=str(folder), hint="pickled weights are not read")
    try:
        with safe_open(file, framework="pt") as weights:
            names = sorted(weights.keys())
            for name in names:
                check_tensor(name, weights.get_tensor(name), str(file))
    except SafetensorError as error:
        raise DataError(f"the weights cannot be read: {error}", where=str(file)) from error
    if not names:
        raise DataError("the adapter has no tensors", where=str(file))
    return frozenset(names)


def check_tensor(name: str, tensor: Tensor, where: str) -> None:
    """Check that a tensor of an adapter holds finite numbers, and not zero alone, as one does that was never trained.

    Raises:
        DataError: names the tensor.
    """
    if tensor.dtype not in _FLOATS:
        raise DataError(f"adapter tensor {name!r} is of type {str(tensor.dtype).removeprefix('torch.')}", where=where)
    if not torch.isfinite(tensor).all():
        raise DataError(f"adapter tensor {name!r} holds values that are not finite", where=where)
    if tensor.numel() and not tensor.any():
        hint = "it was saved before its first step, or its weights were lost; train it, or leave the module out"
        raise DataError(f"adapter tensor {name!r} is zero throughout", where=where, hint=hint)


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LARGEST_CONFIG:
            raise DataError(f"{CONFIG_FILE} cannot be read: larger than 1 MB", where=str(file))
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"no {CONFIG_FILE} in this folder", where=str(file.parent)) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{CONFIG_FILE} cannot be read: {error}", where=str(file)) from error
    if not isinstance(config, dict):
        raise DataError(f"{CONFIG_FILE} cannot be read: it holds no object", where=str(file))
    return config


def _values(pattern: object) -> list[object]:
    return list(pattern.values()) if isinstance(pattern, dict) else []


def _patterns(value: object) -> list[str]:
    """List the regular expressions in a setting; names in a list are no patterns, but may be read as such."""
    if isinstance(value, str):
        return [value]
    return [str(one) for one in value] if isinstance(value, list | dict) else []
