"""Adapter folders of strangers: each is folded, or refused with what is wrong in it; nothing is written by halves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_base
from transformers import AutoModelForCausalLM

from finetune.base_files import open_base
from finetune.errors import DataError
from finetune.merging_shards import fold_shards
from finetune.peft_config import CONFIG_FILE
from finetune.peft_weights import ADAPTER_FILE, open_peft_folder

Q = "base_model.model.model.layers.0.self_attn.q_proj"
Config = dict[str, Any]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def good(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def setting(**settings: Any) -> Callable[[Config, Tensors], None]:
    return lambda config, _: config.update(settings)


def tensor(name: str, value: torch.Tensor | None) -> Callable[[Config, Tensors], None]:
    def change(_: Config, tensors: Tensors) -> None:
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value

    return change


BAD: dict[str, tuple[Callable[[Config, Tensors], None], str]] = {
    "another kind": (setting(peft_type="LOHA"), "its kind is LOHA; accepted: LORA"),
    "a bias": (setting(bias="all"), "bias: 'all'"),
    "bias of the factors": (setting(lora_bias=True), "lora_bias: it has biases"),
    "repeated layers": (setting(layer_replication=[[0, 1], [0, 1]]), "layer_replication: it repeats layers"),
    "an activated adapter": (setting(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens: it acts after certain"),
    "bare parameters": (setting(target_parameters=["mlp.experts"]), "target_parameters"),
    "transposed": (setting(fan_in_fan_out=True), "fan_in_fan_out: its weights lie transposed"),
    "random PiSSA": (
        setting(init_lora_weights="pissa_niter_4"),
        "pissa_niter_4.*path_initial_model_for_weight_conversion",
    ),
    "CorDA": (setting(init_lora_weights="corda"), "init_lora_weights: 'corda'"),
    "a setting of tomorrow": (setting(use_quantum=True), "use_quantum: a setting that is not known here"),
    "a pattern that takes for ever": (setting(rank_pattern={"(a+)+b": 4}), "is more than a name"),
    "a pattern of alternatives": (setting(rank_pattern={"(.|.)" * 26: 4}), "is more than a name"),
    "a pattern that is none": (setting(alpha_pattern={"q_proj(": 4}), "is more than a name"),
    "factors without rows": (
        lambda _, tensors: tensors.update({f"{Q}.lora_{end}.weight": torch.zeros(0) for end in "AB"}),
        "its factors are empty or no matrices",
    ),
    "no tensors": (lambda _, tensors: tensors.clear(), "the adapter has no tensors"),
    "no rank": (setting(r="four"), "adapter_config.json cannot be read: r"),
    "DoRA by name only": (setting(use_dora=True), "use_dora and the tensors disagree"),
    "another rank": (setting(r=8), "rank 8 by the settings, 4 and 4 by the tensors"),
    "a factor is missing": (
        tensor(f"{Q}.lora_B.weight", None),
        "q_proj has lora_A.weight, which make no whole adapter",
    ),
    "a layer too many": (
        lambda _, tensors: tensors.update(
            {f"{Q.replace('.0.', '.7.')}.lora_{end}.weight": tensors[f"{Q}.lora_{end}.weight"].clone() for end in "AB"}
        ),
        "changes model.layers.7.self_attn.q_proj, which this base does not have",
    ),
    "another width": (
        tensor(f"{Q}.lora_A.weight", torch.ones(4, 63)),
        "is 64×64 in this base and 64×63 for the adapter",
    ),
    "not finite": (tensor(f"{Q}.lora_A.weight", torch.full((4, 64), float("inf"))), "holds values that are not finite"),
    "an unknown tensor": (tensor(f"{Q}.lora_Z.weight", torch.zeros(4, 64)), "a tensor that is not known here"),
    "another model's names": (tensor("transformer.h.0.lora_A.weight", torch.zeros(4, 64)), "not known here"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_folded_is_refused_with_the_reason(kind: str, good: Path, base: Path, tmp_path: Path) -> None:
    change, said = BAD[kind]
    config = json.loads((good / CONFIG_FILE).read_text())
    tensors = load_file(good / ADAPTER_FILE)
    change(config, tensors)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    save_file(tensors, tmp_path / ADAPTER_FILE)
    with pytest.raises(DataError, match=said):
        fold_shards(open_base(base), open_peft_folder(tmp_path), tmp_path / "out", "float32")
    assert not (tmp_path / "out").exists()


def test_the_good_one_is_folded(good: Path, base: Path, tmp_path: Path) -> None:
    fold_shards(open_base(base), open_peft_folder(good), tmp_path / "out", "float32")
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"peft_type": "LORA"}'])
def test_damaged_settings(text: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(text)
    with pytest.raises(DataError, match=r"adapter_config\.json cannot be read"):
        open_peft_folder(tmp_path)


def test_damaged_or_pickled_weights(good: Path, tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_bytes((good / CONFIG_FILE).read_bytes())
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match="pickled weights are not read"):
        open_peft_folder(tmp_path)
    (tmp_path / ADAPTER_FILE).write_bytes((good / ADAPTER_FILE).read_bytes()[:500])
    with pytest.raises(DataError, match="the weights cannot be read"):
        open_peft_folder(tmp_path)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"its config\.json is missing or damaged"):
        open_base(tmp_path / "typo")


def test_a_quantized_base_is_not_folded_into(base: Path, good: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text()) | {"quantization_config": {"load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="its weights are quantized"):
        open_base(tmp_path)
