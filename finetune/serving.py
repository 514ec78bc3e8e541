"""`finetune serve`: starts somebody else's OpenAI-compatible server with the model, and ends it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import typer

from finetune.console import Reporter
from finetune.launch_lines import check_servable
from finetune.peft_weights import open_peft_folder
from finetune.server_process import Ended, ServerProcess, require_free, running, wait_until_ready
from finetune.serving_choice import HEALTH, Facts, Launch, Server, choose_server, command_line
from finetune.serving_model import Asked, ServedModel, find_served, lay_out

NEEDED_BY_TRANSFORMERS = ("fastapi", "uvicorn", "openai")
"""What transformers 5.23 looks for before it serves (transformers/utils/import_utils.py, is_serve_available)."""
NEEDED_BY_LLAMA_CPP = ("llama_cpp", "starlette_context", "sse_starlette", "pydantic_settings")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Place:
    """Where a server listens."""

    host: str
    port: int

    @property
    def address(self) -> str:
        """The address to ask it at from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True)
class _Start:
    command: list[str]
    environment: dict[str, str]
    folder: Path


def serve_model(asked: Asked, forced: Server | None, place: Place, cache: Path, *, dry_run: bool = False) -> None:
    """Serve a model until somebody ends it.

    Raises:
        DataError: there is no such model, or it cannot be served as it was trained.
        MachineError: no server can be started here, or it failed; with its last lines.
    """
    reporter = Reporter()
    model = find_served(asked, cache, reporter)
    choice = choose_server(facts_of(model), forced)
    for reason in choice.reasons:
        reporter.say(f"  {reason}")
    if dry_run:
        start = _lay_out_start(model, choice.server, place, cache)
        settings = shlex.join(f"{name}={value}" for name, value in start.environment.items())
        typer.echo(f"cd {shlex.quote(str(start.folder))} && env {settings} {shlex.join(start.command)}")
        return
    try:
        with started(model, choice.server, place, cache, reporter) as server:
            _introduce(model, choice.server, place, reporter)
            server.shown = True
            status = server.child.wait()
            raise server.failure(f"the server ended by itself with status {status}")
    except Ended:
        reporter.say("the server has ended")


@contextmanager
def started(
    model: ServedModel, chosen: Server, place: Place, cache: Path, reporter: Reporter
) -> Iterator[ServerProcess]:
    """Start a server with a model, wait until it answers, and end it with the block.

    Raises:
        DataError: the model cannot be served as it was trained.
        MachineError: the address is taken, or the server ended before it answered; with its last lines.
        Ended: inside the block, when this process is asked to end.
    """
    start = _lay_out_start(model, chosen, place, cache)
    require_free(place.host, place.port)
    # Not where the user stands: a folder there with the model's name would be taken for the model.
    with running(start.command, start.environment, start.folder) as server:
        with reporter.bar(f"start {chosen}", 1) as advance:
            wait_until_ready(server, place.address + HEALTH[chosen])
            advance(1)
        yield server


def _lay_out_start(model: ServedModel, chosen: Server, place: Place, cache: Path) -> _Start:
    served = lay_out(model, cache.resolve())  # the server does not run in the user's folder
    environment = {
        "HF_HUB_CACHE": str(served.hub),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = command_line(chosen, build_launch(chosen, model, served.snapshot, place))
    return _Start(command, environment, served.hub)


def facts_of(model: ServedModel) -> Facts:
    """Look at this machine and the model."""
    return Facts(
        gpu=torch.cuda.is_available(),
        vllm=find_spec("vllm") is not None,
        missing=tuple(name for name in NEEDED_BY_TRANSFORMERS if find_spec(name) is None),
        llama_cpp=all(find_spec(name) is not None for name in NEEDED_BY_LLAMA_CPP),
        gguf=model.gguf is not None,
        adapters=len(model.adapters),
    )


def build_launch(server: Server, model: ServedModel, snapshot: Path, place: Place) -> Launch:
    """Build what a server is started with.

    Raises:
        DataError: vLLM cannot serve one of the adapters, and why.
    """
    adapters = [open_peft_folder(folder) for _, folder in model.adapters]
    for adapter in adapters:
        check_servable(adapter, "vllm")  # the only one that gets here with adapters
    return Launch(
        name=model.name,
        model=str(model.gguf.resolve() if server == "llama.cpp" and model.gguf else snapshot),
        host=place.host,
        port=place.port,
        adapters=tuple((name, str(folder.resolve())) for name, folder in model.adapters),
        rank=max((adapter.config.r for adapter in adapters), default=0),
    )


def _introduce(model: ServedModel, server: Server, place: Place, reporter: Reporter) -> None:
    names = ", ".join([model.name, *(name for name, _ in model.adapters)])
    body = f'{{"model": "{model.name}", "messages": [{{"role": "user", "content": "Hello"}}], "temperature": 0}}'
    reporter.say(f"{server} serves {names} at {place.address}/v1, until Ctrl-C")
    reporter.say(f"  curl {place.address}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")
    reporter.say(f'  openai.OpenAI(base_url="{place.address}/v1", api_key="-")')
    if place.host not in LOOPBACK:
        reporter.say(
            f"  {place.host}: whoever reaches this machine can ask it, without a password or encryption; "
            "put a proxy with both in front, or use --host 127.0.0.1"
        )
