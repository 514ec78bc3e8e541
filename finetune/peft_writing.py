"""Writes a LoRA adapter folder from factors, as peft reads it; the settings are the same on every machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from finetune.adapter_combining import Factors
from finetune.peft_config import CONFIG_FILE
from finetune.peft_weights import ADAPTER_FILE, EMBEDDING


def write_lora(
    folder: Path, factors: Mapping[str, Factors], saved: Mapping[str, Tensor], base: tuple[str | None, str | None]
) -> None:
    """Write factors of scaling 1, and modules that are kept whole, for a base named by its id and revision."""
    tensors: dict[str, Tensor] = {}
    for module, one in factors.items():
        down, up = (
            ("lora_embedding_A", "lora_embedding_B") if module == EMBEDDING else ("lora_A.weight", "lora_B.weight")
        )
        tensors[f"base_model.model.{module}.{down}"] = one.down.contiguous()
        tensors[f"base_model.model.{module}.{up}"] = one.up.contiguous()
    for module, weight in saved.items():
        tensors[f"base_model.model.{module}.weight"] = weight.contiguous()
    ranks = {module: one.down.shape[0] for module, one in factors.items()}
    save_file(tensors, folder / ADAPTER_FILE, metadata={"format": "pt"})
    text = json.dumps(_config(ranks, sorted(saved), base), indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def _config(ranks: Mapping[str, int], saved: Sequence[str], base: tuple[str | None, str | None]) -> dict[str, object]:
    rank = max(ranks.values(), default=1)
    others = {module: number for module, number in sorted(ranks.items()) if number != rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base[0],
        "revision": base[1],
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "target_modules": sorted(ranks),
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        # By their full names: peft compares ends, and `norm` would be every normalization.
        "modules_to_save": sorted(saved) or None,
    }
