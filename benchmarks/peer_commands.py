"""The command of each tool: the same adapter, data and rate, at the settings that its users would choose.

All: LoRA of rank 16 and alpha 32 on all linear layers, bfloat16, a constant rate of 2e-4, one epoch, labels on the
answers alone, no gradient checkpointing, no evaluation. Peers take 8 examples a step; those that pack take rows of
1,024 tokens, as the bare loop and our own command do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.peer_environments import PeerEnvironment
from benchmarks.peer_rows import RowFiles

MAX_TOKENS = 1024
RATE = "2e-4"
LITGPT_NAME = "SmolLM2-135M-Instruct"
"""LitGPT knows the shape of a model by the name of its folder."""


@dataclass(frozen=True)
class Place:
    """Where a contender finds its things and where it writes."""

    model: Path
    rows: RowFiles
    work: Path
    """A folder of its own, empty before each run."""
    converted: Path
    """The model in LitGPT's form."""
    caches: Path
    """Folder of the peers' environments."""

    def installed(self, peer: str, command: str) -> str:
        """Return the path of a command of a peer's environment."""
        return PeerEnvironment(peer, self.caches).command(command)


def trl_command(examples_at_a_time: int, *more: str) -> Callable[[Place], list[str]]:
    """Return the command of TRL, with more options after the common ones."""

    def command(place: Place) -> list[str]:
        options = {
            "model_name_or_path": place.model,
            "dataset_name": place.rows.texts.parent,
            "output_dir": place.work / "out",
            "dtype": "bfloat16",  # quicker and smaller than its default, float32 under autocast
            "use_peft": "true",
            "lora_r": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.0,
            "lora_target_modules": "all-linear",
            "max_length": MAX_TOKENS,
            "per_device_train_batch_size": examples_at_a_time,
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 1,
            "bf16": "true",
            "use_cpu": "true",
            "gradient_checkpointing": "false",
            "save_strategy": "no",
            "report_to": "none",
            "logging_steps": 1,
            "disable_tqdm": "true",
        }
        return [place.installed("trl", "trl"), "sft", *_as_options(options), *more]

    return command


def llamafactory_command(**changed: object) -> Callable[[Place], list[str]]:
    """Return the command of LLaMA-Factory, which reads a file; `changed` are options other than the common ones."""

    def command(place: Place) -> list[str]:
        options: dict[str, object] = {
            "model_name_or_path": str(place.model),
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "lora_rank": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.0,
            "lora_target": "all",
            "dataset_dir": str(place.rows.llamafactory),
            "dataset": "rows",
            "template": "empty",
            "cutoff_len": MAX_TOKENS,
            "output_dir": str(place.work / "out"),
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "learning_rate": float(RATE),
            "lr_scheduler_type": "constant",
            "num_train_epochs": 1.0,
            "bf16": True,
            "use_cpu": True,
            "disable_gradient_checkpointing": True,
            "save_strategy": "no",
            "report_to": "none",
            "logging_steps": 1,
            "disable_tqdm": True,
            "overwrite_cache": True,
        }
        path = place.work / "train.yaml"
        path.write_text(yaml.safe_dump({**options, **changed}), encoding="utf-8")
        return [place.installed("llamafactory", "llamafactory-cli"), "train", str(path)]

    return command


def litgpt_command(examples_at_a_time: int) -> Callable[[Place], list[str]]:
    """Return the command of LitGPT; 8 examples a step, so many at a time."""

    def command(place: Place) -> list[str]:
        options = {
            "out_dir": place.work / "out",
            "precision": "bf16-true",
            "devices": 1,
            "lora_r": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.0,
            **{f"lora_{part}": "true" for part in ("query", "key", "value", "projection", "mlp")},
            "data": "JSON",
            "data.json_path": place.rows.litgpt,
            "data.mask_prompt": "true",
            "data.prompt_style": '{"class_path": "litgpt.prompts.Default"}',  # the text as it is; it has no name
            "data.num_workers": 0,
            "train.epochs": 1,
            "train.global_batch_size": 8,
            "train.micro_batch_size": examples_at_a_time,
            "train.max_seq_length": MAX_TOKENS,
            "train.log_interval": 1,
            "train.lr_warmup_steps": 1,
            "train.min_lr": RATE,  # a constant rate
            "optimizer": json.dumps(
                {"class_path": "torch.optim.AdamW", "init_args": {"lr": float(RATE), "weight_decay": 0.0}}
            ),
            "eval.initial_validation": "false",
            "eval.final_validation": "false",
            "eval.max_new_tokens": 1,
        }
        return [place.installed("litgpt", "litgpt"), "finetune_lora", str(place.converted), *_as_options(options)]

    return command


def axolotl_command(place: Place) -> list[str]:
    """Write the file that axolotl reads and return its command."""
    options = {
        "base_model": str(place.model),
        "adapter": "lora",
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "lora_target_linear": True,
        "datasets": [{"path": str(place.rows.messages), "ds_type": "json", "type": "chat_template"}],
        "dataset_prepared_path": str(place.work / "prepared"),
        "sequence_len": MAX_TOKENS,
        "micro_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "optimizer": "adamw_torch",
        "learning_rate": float(RATE),
        "lr_scheduler": "constant",
        "bf16": True,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "attn_implementation": "sdpa",
        "save_strategy": "no",
        "logging_steps": 1,
        "output_dir": str(place.work / "out"),
    }
    path = place.work / "train.yaml"
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return [place.installed("axolotl", "axolotl"), "train", str(path)]


def loop_command(*more: str) -> Callable[[Place], list[str]]:
    """Return the command of our bare loop."""

    def command(place: Place) -> list[str]:
        paths = [str(place.model), str(place.rows.texts), "--save", str(place.work / "adapter")]
        return [sys.executable, "-m", "benchmarks.bare_loop", *paths, *more]

    return command


def our_recipe(model: Path, rows: RowFiles, nf4: bool) -> dict[str, object]:
    """Return a recipe of what all contenders do."""
    rows_of = {"rows": "messages"}
    return {
        "version": 1,
        "name": "peers",
        "seed": 0,
        "base": {"model": str(model), "dtype": "bfloat16"},
        **({"quantization": {"kind": "nf4"}, "merge": {"onto": "dequantized"}} if nf4 else {}),
        "adapter": {"kind": "lora", "rank": 16, "alpha": 32.0},
        "data": {
            "train": [{"source": str(rows.messages), **rows_of}],
            "held_out": {"source": str(rows.held_out), **rows_of},
            "max_tokens": MAX_TOKENS,
            "overflow": "refuse",
        },
        "training": {
            "epochs": 1,
            "tokens_per_step": MAX_TOKENS,
            "batches": "packed",
            "learning_rate": float(RATE),
            "schedule": "constant",
            "warmup_fraction": 0.0,
        },
    }


def ours_command(nf4: bool) -> Callable[[Place], list[str]]:
    """Return our own command, on a recipe that is written here."""

    def command(place: Place) -> list[str]:
        path = place.work / "recipe.yaml"
        path.write_text(json.dumps(our_recipe(place.model, place.rows, nf4)), encoding="utf-8")  # JSON is YAML
        folders = ["--out", str(place.work / "run"), "--cache", str(place.work / "cache")]
        return [sys.executable, "-m", "finetune.cli", "train", str(path), *folders]

    return command


def _as_options(options: Mapping[str, object]) -> list[str]:
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]
