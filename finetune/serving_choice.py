"""Which server is started, and with which command line: decided from facts alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from finetune.errors import MachineError

Server = Literal["vllm", "transformers", "llama.cpp"]
SERVERS: tuple[Server, ...] = get_args(Server)
"""The best first."""

HEALTH: Mapping[Server, str] = {"vllm": "/health", "transformers": "/health", "llama.cpp": "/v1/models"}
"""What a server answers as soon as it can be asked."""

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM accepts as --max-lora-rank: https://docs.vllm.ai/en/stable/api/vllm/config/lora.html"""


@dataclass(frozen=True)
class Facts:
    """What the choice rests on."""

    gpu: bool
    vllm: bool
    """Whether it is installed."""
    missing: tuple[str, ...]
    """Packages that `transformers serve` needs and that are not installed."""
    llama_cpp: bool
    """Whether llama-cpp-python is installed with its server."""
    gguf: bool
    """Whether the model is there as a GGUF file."""
    adapters: int
    """How many adapters are to be put on one base."""


@dataclass(frozen=True)
class Choice:
    """A server, and why not the better ones."""

    server: Server
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Launch:
    """What a command line is made of."""

    name: str
    """What requests call the model."""
    model: str
    """The folder for vLLM, the GGUF file for llama.cpp; transformers finds it by its name."""
    host: str
    port: int
    adapters: tuple[tuple[str, str], ...] = ()
    rank: int = 0
    """The largest of the adapters."""


def choose_server(facts: Facts, forced: Server | None = None) -> Choice:
    """Choose the best server that can serve this here, or the one that is asked for.

    Raises:
        MachineError: the one that is asked for cannot, or none can; with each reason.
    """
    refusals = {server: _why_not(server, facts) for server in SERVERS}
    if forced is not None:
        refusal = refusals[forced]
        if refusal is not None and not (forced == "vllm" and facts.vllm):  # vLLM has builds for processors, too
            raise MachineError(refusal, where=f"--server {forced}", hint=_way_out(facts, forced))
        return Choice(forced, (f"{forced}: asked for",))
    reasons: list[str] = []
    for server, refusal in refusals.items():
        if refusal is None:
            return Choice(server, tuple(reasons))
        reasons.append(f"{server}: {refusal}")
    raise MachineError("no server can be started: " + "; ".join(reasons), hint=_way_out(facts))


def command_line(server: Server, launch: Launch) -> list[str]:
    """Spell out the command that starts a server.

    Raises:
        MachineError: an adapter's rank is larger than the server takes.
    """
    where = ["--host", launch.host, "--port", str(launch.port)]
    match server:
        case "vllm":
            start = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", launch.model]
            return [*start, "--served-model-name", launch.name, *where, *_adapters(launch)]
        case "transformers":
            return [sys.executable, "-m", "transformers.cli.transformers", "serve", launch.name, *where]
        case "llama.cpp":
            start = [sys.executable, "-m", "llama_cpp.server", "--model", launch.model, "--model_alias", launch.name]
            return [*start, *where, "--n_ctx", "0"]  # 0: what the model holds; 2048 if not given


def _why_not(server: Server, facts: Facts) -> str | None:
    match server:
        case "vllm":
            return "it is not installed" if not facts.vllm else None if facts.gpu else "there is no GPU"
        case "transformers" if facts.adapters:
            return "it serves one model and takes no adapters"
        case "transformers":
            return f"{', '.join(facts.missing)} is not installed" if facts.missing else None
        case "llama.cpp" if facts.adapters:
            return "its server takes no adapters by name"
        case "llama.cpp" if not facts.gguf:
            return "there is no GGUF file of the model (`finetune export` writes one into the run's folder)"
        case "llama.cpp":
            return None if facts.llama_cpp else "llama-cpp-python[server] is not installed"


def _way_out(facts: Facts, server: Server = "transformers") -> str:
    if facts.adapters:
        return (
            "merge the adapter (finetune adapter merge) and serve the result, or install vllm on a machine with a GPU"
        )
    packages = {"vllm": "vllm", "transformers": "finetune-recipes[serve]", "llama.cpp": "llama-cpp-python[server]"}
    return f"pip install '{packages[server]}'"


def _adapters(launch: Launch) -> Sequence[str]:
    if not launch.adapters:
        return ()
    rank = next((most for most in VLLM_RANKS if most >= launch.rank), None)
    if rank is None:
        what = f"vLLM takes adapters of rank {VLLM_RANKS[-1]} at most, and one has {launch.rank}"
        raise MachineError(
            what, where="--adapter", hint="merge it, or make a smaller one: finetune adapter combine --rank"
        )
    pairs = [f"{name}={folder}" for name, folder in launch.adapters]
    count = str(len(pairs))
    return ("--enable-lora", "--max-loras", count, "--max-lora-rank", str(rank), "--lora-modules", *pairs)
