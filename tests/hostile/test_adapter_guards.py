"""The guard before peft, at its limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from corpus_files import ADAPTERS, SAFETENSORS
from safetensors.torch import save_file

from evaluation.adapter_files import (
    CONFIG_FILE,
    LARGEST_RANK,
    WEIGHTS_FILE,
    check_adapter_config,
    check_adapter_weights,
    check_tensor,
    is_quick,
)
from evaluation.errors import DataError

GOOD: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


def check(place: Path, **values: Any) -> None:
    (place / CONFIG_FILE).write_text(json.dumps(GOOD | values), encoding="utf-8")
    check_adapter_config(place)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"megatron_core": "megatron.core", "megatron_config": None, "arrow_config": None},
        {"r": 1},
        {"r": LARGEST_RANK},
        {"lora_alpha": -1.5},
        {"lora_alpha": 0},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"q_proj": 2.5}},
        {"target_modules": r"model\.layers\.\d+\.(q|v)_proj"},
        {"target_modules": "a" * 500},
        {"target_modules": ".*.*.*.*"},
        {"target_modules": r"\(a\)\*\*\*\*\*"},
        {"layers_pattern": None, "exclude_modules": None},
    ],
)
def test_what_people_publish_is_taken(values: dict[str, Any], tmp_path: Path) -> None:
    check(tmp_path, **values)


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_is_hostile_is_not(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        check(tmp_path, **ADAPTERS[name])
    assert CONFIG_FILE in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"r": LARGEST_RANK + 1}, "r and rank_pattern"),
        ({"r": 100_000}, "r and rank_pattern"),
        ({"rank_pattern": {"q_proj": 0}}, "r and rank_pattern"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "lora_alpha and alpha_pattern"),
        ({"lora_alpha": "8"}, "lora_alpha and alpha_pattern"),
        ({"r": None}, "r and rank_pattern"),
        ({"target_modules": ["q_proj", "(a+)+b"]}, "target_modules: the pattern"),
        ({"target_parameters": ["(a+)+b"]}, "target_parameters: the pattern"),
    ],
)
def test_the_setting_is_named(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        check(tmp_path, **values)


@pytest.mark.parametrize(
    ("pattern", "quick"),
    [
        ("a*", True),
        ("(ab)*", False),
        ("(ab)+", False),
        ("(ab){2}", False),
        (r"\)*", True),
        ("a*b+c{2}d*", True),
        ("a*b+c{2}d*e*", False),
    ],
)
def test_patterns(pattern: str, quick: bool) -> None:
    assert is_quick(pattern) is quick


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff"])
def test_damaged_settings(text: bytes, tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(text)
    with pytest.raises(DataError, match="cannot be read"):
        check_adapter_config(tmp_path)


def test_settings_without_end_or_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no {CONFIG_FILE}"):
        check_adapter_config(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(GOOD) + " " * 1_000_000, encoding="utf-8")
    with pytest.raises(DataError, match="larger than 1 MB"):
        check_adapter_config(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(GOOD).ljust(1_000_000), encoding="utf-8")
    check_adapter_config(tmp_path)


@pytest.mark.parametrize("name", SAFETENSORS)
def test_damaged_weights(name: str, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_FILE).write_bytes(SAFETENSORS[name])
    with pytest.raises(DataError):
        check_adapter_weights(tmp_path)


def test_weights(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="pickled weights are not read"):
        check_adapter_weights(tmp_path)
    save_file({}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(DataError, match="no tensors"):
        check_adapter_weights(tmp_path)
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / WEIGHTS_FILE)
    assert check_adapter_weights(tmp_path) == {"a", "b"}
    save_file({"a": torch.ones(2), "b": torch.zeros(2)}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(DataError, match="'b' is zero"):
        check_adapter_weights(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tensors(dtype: torch.dtype) -> None:
    check_tensor("a", torch.tensor([0.0, 1.0], dtype=dtype), "here")
    check_tensor("a", torch.zeros(0, dtype=dtype), "here")
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(DataError, match="not finite"):
            check_tensor("a", torch.tensor([1.0, value], dtype=dtype), "here")
    with pytest.raises(DataError, match="zero throughout"):
        check_tensor("a", torch.zeros(2, dtype=dtype), "here")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_other_types(dtype: torch.dtype) -> None:
    with pytest.raises(DataError, match=f"is of type {str(dtype)[6:]}"):
        check_tensor("a", torch.ones(2).to(dtype), "here")
