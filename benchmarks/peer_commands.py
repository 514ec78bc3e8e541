"""What is run for each contender: the same adapter, data and rate, at the settings that its users would choose.

All: LoRA of rank 16 and alpha 32 on all linear layers, bfloat16, a constant rate of 2e-4, one epoch, labels on the
answers alone, no gradient checkpointing, no evaluation. Peers take 8 examples a step; those that pack take rows of
1,024 tokens, as the bare loop and our own command do.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.peer_environments import PeerEnvironment
from benchmarks.peer_rows import RowFiles

MAX_TOKENS = 1024
RATE = "2e-4"
LITGPT_NAME = "SmolLM2-135M-Instruct"
"""LitGPT knows the shape of a model by the name of its folder."""
LOOP_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}
"""Keeps glibc from giving every large tensor back to the system."""


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


@dataclass(frozen=True)
class Contender:
    """One way to train on the rows."""

    name: str
    peer: str
    """Whose environment; `ours` and `loop` run in this one."""
    command: Callable[[Place], list[str]]
    says: str
    """How it is set."""
    adapter: str | None = None
    """Where in its work folder a PEFT adapter is afterwards."""


def environment_of(contender: Contender, place: Place) -> dict[str, str]:
    """Return the variables a contender runs with: offline, on the CPU, with caches of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME")}
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    own = {"HF_HOME": str(place.work / "huggingface"), "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    if contender.peer in ("ours", "loop"):
        own["PYTHONPATH"] = str(Path(__file__).parents[1])
    else:
        commands = PeerEnvironment(contender.peer, place.caches).folder / "bin"
        own["PATH"] = f"{commands}{os.pathsep}{os.environ['PATH']}"
    return {**kept, **quiet, **own, **(LOOP_ALLOCATOR if contender.peer == "loop" else {})}


def _trl(examples_at_a_time: int, *more: str) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        options = {
            "model_name_or_path": place.model,
            "dataset_name": place.rows.texts.parent,
            "output_dir": place.work / "out",
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


def _llamafactory(**changed: object) -> Callable[[Place], list[str]]:
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


def _litgpt(examples_at_a_time: int) -> Callable[[Place], list[str]]:
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
            "data.prompt_style": "default",  # the text as it is
            "data.num_workers": 0,
            "train.epochs": 1,
            "train.global_batch_size": 8,
            "train.micro_batch_size": examples_at_a_time,
            "train.max_seq_length": MAX_TOKENS,
            "train.log_interval": 1,
            "train.lr_warmup_steps": 1,
            "train.min_lr": RATE,  # a constant rate
            "optimizer": "AdamW",
            "optimizer.lr": RATE,
            "optimizer.weight_decay": 0.0,
            "eval.initial_validation": "false",
            "eval.final_validation": "false",
            "eval.max_new_tokens": 1,
        }
        return [place.installed("litgpt", "litgpt"), "finetune_lora", str(place.converted), *_as_options(options)]

    return command


def _axolotl(place: Place) -> list[str]:
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


def _loop(*more: str) -> Callable[[Place], list[str]]:
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
            "learning_rate": float(RATE),
            "schedule": "constant",
            "warmup_fraction": 0.0,
        },
    }


def _ours(nf4: bool) -> Callable[[Place], list[str]]:
    def command(place: Place) -> list[str]:
        path = place.work / "recipe.yaml"
        path.write_text(json.dumps(our_recipe(place.model, place.rows, nf4)), encoding="utf-8")  # JSON is YAML
        folders = ["--out", str(place.work / "run"), "--cache", str(place.work / "cache")]
        return [sys.executable, "-m", "finetune.cli", "train", str(path), *folders]

    return command


def _as_options(options: Mapping[str, object]) -> list[str]:
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


CONTENDERS = (
    Contender("ours-bf16", "ours", _ours(nf4=False), "`finetune train`, steps of 1,024 tokens", "run/adapter"),
    Contender("ours-nf4", "ours", _ours(nf4=True), "the same with `quantization: {kind: nf4}`", "run/adapter"),
    Contender("loop-bf16", "loop", _loop(), "a bare loop, packs of 1,024 tokens", "adapter"),
    Contender("loop-nf4", "loop", _loop("--nf4"), "the same on NF4", "adapter"),
    Contender("trl-packed", "trl", _trl(1, "--packing", "true"), "`trl sft --packing`, rows of 1,024 tokens", "out"),
    Contender("trl-padded", "trl", _trl(8), "`trl sft`, 8 examples padded", "out"),
    Contender(
        "trl-single", "trl", _trl(1, "--gradient_accumulation_steps", "8"), "`trl sft`, 8 examples one by one", "out"
    ),
    Contender(
        "llamafactory-packed",
        "llamafactory",
        _llamafactory(neat_packing=True, per_device_train_batch_size=1),
        "`llamafactory-cli train` with `neat_packing`, rows of 1,024 tokens",
        "out",
    ),
    Contender("llamafactory-padded", "llamafactory", _llamafactory(), "`llamafactory-cli train`, 8 padded", "out"),
    Contender(
        "llamafactory-single",
        "llamafactory",
        _llamafactory(per_device_train_batch_size=1, gradient_accumulation_steps=8),
        "`llamafactory-cli train`, 8 one by one",
        "out",
    ),
    Contender("litgpt-padded", "litgpt", _litgpt(8), "`litgpt finetune_lora`, 8 examples padded"),
    Contender("litgpt-single", "litgpt", _litgpt(1), "`litgpt finetune_lora`, 8 examples one by one"),
    Contender("axolotl", "axolotl", _axolotl, "`axolotl train`, 8 examples padded", "out"),
)
DEFAULT_PEERS = "ours,loop,trl,llamafactory,litgpt"
"""Not axolotl 0.19.0: on a CPU it stops before its first step, since its `use_cpu` does not reach transformers, which
then refuses bfloat16; and its environment takes 3.5 GB."""


def named(names: Sequence[str]) -> list[Contender]:
    """Return the contenders of these names; the name of a peer stands for all of its.

    Raises:
        ValueError: there is no such peer or contender.
    """
    known = {one.name for one in CONTENDERS} | {one.peer for one in CONTENDERS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no contender is called {unknown[0]!r}; there are: {', '.join(sorted(known))}")
    return [one for one in CONTENDERS if one.name in names or one.peer in names]
