"""The command line of what leaves the house: `export`, `adapter export` and `launch-line`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Cache = Annotated[Path | None, typer.Option(help="Folder for fetched bases.")]
BaseName = Annotated[
    str | None,
    typer.Option("--base", help="Folder or hub id of an adapter's base; as it or its run names it if not given."),
]
Out = Annotated[Path, typer.Option(help="File (or folder) to write.", show_default=False)]
Modelfile = Annotated[bool, typer.Option("--modelfile", help="Also write a Modelfile for Ollama.")]


def export(
    model: Annotated[Path, typer.Argument(help="Folder of a run, or of a merged model.", show_default=False)],
    out: Out,
    gguf: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q4_1", "q4_0"],
        typer.Option(help="How the weights are stored in a GGUF file."),
    ] = "bf16",
    quantize: Annotated[
        Literal["nf4", "int8"] | None,
        typer.Option(help="Write a folder of safetensors in 4 or 8 bits instead, for transformers."),
    ] = None,
    modelfile: Modelfile = False,
    llama_cpp: Annotated[
        bool | None,
        typer.Option(
            "--llama-cpp/--no-llama-cpp",
            help="Compare with llama.cpp too; done where it is installed, if not given.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a model as one GGUF file, or as safetensors in fewer bits, read it back, and compare the two."""
    if quantize is not None:
        if modelfile or llama_cpp is not None:
            raise typer.BadParameter("--modelfile and --llama-cpp are about GGUF files", param_hint="--quantize")
        from finetune.quantizing import export_quantized

        export_quantized(model, out, quantize)
        return
    from finetune.exporting import Extras, export_model

    export_model(model, out, gguf, Extras(modelfile, llama_cpp))


def export_adapter(
    folder: Annotated[Path, typer.Argument(help="An adapter folder, or a run.", show_default=False)],
    out: Out,
    base: BaseName = None,
    gguf: Annotated[Literal["f32", "f16", "bf16"], typer.Option(help="How the factors are stored.")] = "f16",
    modelfile: Modelfile = False,
    llama_cpp: Annotated[
        bool, typer.Option("--llama-cpp", help="Compare with llama.cpp too, on a file of the base in fp32.")
    ] = False,
) -> None:
    """Write a LoRA as a GGUF file that llama.cpp and Ollama load beside the base's, and prove each change."""
    from finetune.exporting import Extras
    from finetune.exporting_adapter import export_adapter_file

    export_adapter_file(folder, base, out, gguf, Extras(modelfile, llama_cpp))


def launch_line(
    model: Annotated[Path, typer.Argument(help="Folder of a run, a model or an adapter.", show_default=False)],
    server: Annotated[Literal["vllm", "sglang"], typer.Option("--with", help="What serves it.")] = "vllm",
    merged: Annotated[
        bool, typer.Option("--merged", help="Serve a run's merged model instead of its adapter on the base.")
    ] = False,
    base: BaseName = None,
    cache: Cache = None,
) -> None:
    """Print the command that serves a run with vLLM or SGLang, if what it has is what their loaders can."""
    from finetune.launch_lines import print_launch_line

    print_launch_line(model, server, merged, base, _cache(cache))


def _cache(named: Path | None) -> Path:
    from finetune.cache import default_cache

    return named or default_cache()
