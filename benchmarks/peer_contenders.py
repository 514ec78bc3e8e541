"""Who is compared with whom, and in which surroundings each runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peer_commands import (
    Place,
    axolotl_command,
    litgpt_command,
    llamafactory_command,
    loop_command,
    ours_command,
    trl_command,
)
from benchmarks.peer_environments import PeerEnvironment

LOOP_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}
"""Keeps glibc from giving every large tensor back to the system."""


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


_OUT = "out"
"""Where transformers' Trainer writes the adapter, for TRL and LLaMA-Factory."""
CONTENDERS = (
    Contender("ours-bf16", "ours", ours_command(nf4=False), "`finetune train`, packs of 1,024 tokens", "run/adapter"),
    Contender("ours-nf4", "ours", ours_command(nf4=True), "the same with `quantization: {kind: nf4}`", "run/adapter"),
    Contender("loop-bf16", "loop", loop_command(), "a bare loop, packs of 1,024 tokens", "adapter"),
    Contender("loop-nf4", "loop", loop_command("--nf4"), "the same on NF4", "adapter"),
    Contender("trl-packed", "trl", trl_command(1, "--packing", "true"), "`trl sft --packing`, rows of 1,024", _OUT),
    Contender("trl-padded", "trl", trl_command(8), "`trl sft`, 8 examples padded", _OUT),
    Contender(
        "trl-single", "trl", trl_command(1, "--gradient_accumulation_steps", "8"), "`trl sft`, 8 one by one", _OUT
    ),
    Contender(
        "llamafactory-packed",
        "llamafactory",
        llamafactory_command(neat_packing=True, per_device_train_batch_size=1),
        "`llamafactory-cli train` with `neat_packing`, rows of 1,024 tokens",
        _OUT,
    ),
    Contender(
        "llamafactory-padded",
        "llamafactory",
        llamafactory_command(),
        "`llamafactory-cli train`, 8 examples padded",
        _OUT,
    ),
    Contender(
        "llamafactory-single",
        "llamafactory",
        llamafactory_command(per_device_train_batch_size=1, gradient_accumulation_steps=8),
        "`llamafactory-cli train`, 8 one by one",
        _OUT,
    ),
    Contender("litgpt-padded", "litgpt", litgpt_command(8), "`litgpt finetune_lora`, 8 examples padded"),
    Contender("litgpt-single", "litgpt", litgpt_command(1), "`litgpt finetune_lora`, 8 one by one"),
    Contender("axolotl", "axolotl", axolotl_command, "`axolotl train`, 8 examples padded", _OUT),
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
