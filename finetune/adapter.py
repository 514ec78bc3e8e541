"""Builds and writes adapters: the module of the upper package that speaks to peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, set_seed

from evaluation.files import sha256_of_file
from finetune.errors import Problem, RecipeError, TrainingStopped
from finetune.peft_weights import ADAPTER_FILE
from finetune.recipe import Adapter, Projection


def build_adapter(model: PreTrainedModel, adapter: Adapter, seed: int) -> PeftModel:
    """Add fresh adapters to a frozen model; their weights are fp32, also on a bf16 or 4-bit base.

    The generators are seeded here, immediately before the weights are drawn, so that the seed of the recipe decides
    them and nothing that happened before does.

    Raises:
        RecipeError: a target names no layer of this model.
    """
    targets = target_modules(adapter)
    _refuse_unmatched(model, targets)
    set_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        lora_alpha=_whole(adapter.alpha),  # type: ignore[arg-type]  # peft only multiplies by it
        lora_dropout=adapter.dropout,
        target_modules=list(targets),
        use_rslora=adapter.variant == "rslora",
        use_dora=adapter.variant == "dora",
        bias="none",
    )
    adapted = get_peft_model(model, config)
    keep_in_fp32(adapted)
    return adapted


def target_modules(adapter: Adapter) -> tuple[str, ...]:
    """Return the names of the projections that get an adapter, in the order of the schema."""
    return get_args(Projection) if adapter.targets == "all-linear" else adapter.targets


def keep_in_fp32(model: torch.nn.Module) -> None:
    """Cast everything trainable to fp32.

    TRL 1.16 casts the adapters of a 4-bit base to bf16, in which small updates are lost; this is called after it.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _whole(number: float) -> float:
    """Return a whole number as one, as readers of adapter_config.json expect it, however the recipe spells it."""
    return int(number) if number.is_integer() else number


def adapter_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy the trainable tensors, name → tensor on the CPU."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}


def restore_adapter(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Put copied tensors back."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])


def check_moved(model: torch.nn.Module, first: dict[str, torch.Tensor], steps: int) -> None:
    """Refuse an adapter of which some tensor is exactly as it was before training, or is not finite.

    After a single step the A factors have not moved yet, since B is zero until then.

    Raises:
        TrainingStopped: names the tensors.
    """
    weights = adapter_weights(model)
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise TrainingStopped(f"adapter tensor {broken[0]} holds values that are not finite", where="training")
    still = [name for name, tensor in weights.items() if torch.equal(tensor, first[name])]
    if steps < 2:
        still = [name for name in still if "lora_A" not in name]
    if still:
        raise TrainingStopped(
            f"{len(still)} of {len(weights)} adapter tensors did not move in {steps} steps, first {still[0]}",
            where="training",
            hint="a layer without a gradient learns nothing: check adapter.targets, training.gradient_checkpointing",
        )


def write_adapter(model: PeftModel, folder: Path, base_name: str, revision: str | None) -> None:
    """Write adapter_model.safetensors and a configuration that is the same on every machine.

    peft writes the local path of the base, and sets in the order of their hashes; here the base is named as the
    recipe names it, and lists are sorted.
    """
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's card names the base by its local path
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name
    config["revision"] = revision
    config["inference_mode"] = True
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[key] = sorted(value)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def adapter_hash(folder: Path) -> str:
    """Hash the adapter's weights."""
    return sha256_of_file(folder / ADAPTER_FILE)


def _refuse_unmatched(model: PreTrainedModel, targets: tuple[str, ...]) -> None:
    leaves = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if not list(module.children())}
    missing = [target for target in targets if target not in leaves]
    if missing:
        raise RecipeError(
            [
                Problem(
                    "adapter.targets",
                    f"{name!r} matches no layer of this base",
                    f"its layers: {', '.join(sorted(leaves))}",
                )
                for name in missing
            ]
        )
