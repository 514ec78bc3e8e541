"""`finetune adapter export`: writes an adapter as a GGUF file, reads it back, and proves that it is the adapter."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from evaluation.files import staged_file, write_model
from evaluation.model import ModelSpec, load_model
from evaluation.rendering import Renderer
from evaluation.tokenizer import load_tokenizer
from finetune.adapter_commands import find_base
from finetune.base_files import BaseFiles
from finetune.cache import default_cache
from finetune.console import Reporter
from finetune.exporting import PROBE_TEXTS, Extras, describe_llama_cpp, modelfile_of, write_modelfile
from finetune.gguf_adapter import AdapterKind, check_exportable, export_adapter, prove_adapter
from finetune.gguf_export import export_gguf
from finetune.gguf_names import read_shape
from finetune.llama_cpp import require_llama_cpp
from finetune.llama_cpp_check import Files, LlamaCppProof, prove_with_llama_cpp
from finetune.modelfile import build_modelfile
from finetune.peft_weights import PeftFolder, open_peft_folder


def export_adapter_file(named: Path, base_name: str | None, out: Path, kind: AdapterKind, extras: Extras) -> None:
    """Write a run's adapter, or any adapter folder, as a GGUF file with its proof beside it.

    Raises:
        DataError: the format cannot hold the adapter, or it is not one of this base.
        MachineError: llama.cpp was to be asked and is not installed.
        ProofFailed: what is read back is not the adapter; nothing is written.
    """
    if extras.llama_cpp:
        require_llama_cpp()
    folder = adapter_folder(named)
    adapter, reporter = open_peft_folder(folder), Reporter()
    base = find_base(adapter, base_name, default_cache(), reporter)
    check_exportable(adapter, base)
    modelfile = _modelfile(adapter, base, out) if extras.modelfile else None
    beside = out.with_name(f"{out.name}.json")
    with staged_file(out) as staging:
        with reporter.bar(f"write {kind}", len(adapter.modules)) as advance:
            export_adapter(adapter, base, staging, kind, advance)
        with reporter.bar("read back and compare", len(adapter.modules)) as advance:
            proof = prove_adapter(adapter, base, staging, kind, advance)
        if extras.llama_cpp:
            with reporter.bar("ask llama.cpp", 1) as advance:
                proof = proof.model_copy(update={"llama_cpp": ask_llama_cpp(adapter, base, staging)})
                advance(1)
        beside.unlink(missing_ok=True)  # it is about the file that is replaced now
    write_model(beside, proof)
    size = out.stat().st_size / 2**20
    reporter.say(f"{out}: {size:,.1f} MiB, {len(proof.errors)} modules, largest error {proof.largest_error:.1e}")
    reporter.say(f"  {describe_llama_cpp(proof.llama_cpp)}")
    if modelfile is not None:
        write_modelfile(out, modelfile, reporter)
        reporter.say(f"  the base's file: finetune export {base.folder} --out {out.with_name('base.gguf')}")


def adapter_folder(named: Path) -> Path:
    """Return the adapter of a run, or the folder itself."""
    return named / "adapter" if (named / "adapter" / "adapter_config.json").exists() else named


def ask_llama_cpp(adapter: PeftFolder, base: BaseFiles, lora: Path) -> LlamaCppProof:
    """Compare the answers of the base's file with the adapter's file on it, and those of peft, in fp32."""
    with tempfile.TemporaryDirectory(dir=lora.parent, prefix=".staging-") as scratch:
        whole = Path(scratch) / "base.gguf"
        export_gguf(base.folder, whole, "f32", "base")
        model = load_model(ModelSpec(base.folder, adapter=adapter.folder, dtype="float32", device="cpu"))
        assert isinstance(model, torch.nn.Module)
        return prove_with_llama_cpp(Files(whole, lora), model, _renderer(base.folder), PROBE_TEXTS)


def _modelfile(adapter: PeftFolder, base: BaseFiles, out: Path) -> str:
    trained_with = adapter.folder if (adapter.folder / "tokenizer.json").exists() else base.folder
    comment = (
        f"{out.name} for Ollama: ollama create {out.stem} -f {modelfile_of(out).name}\n"
        "FROM is the base that the adapter was trained on, as a GGUF file; on any other it answers nonsense."
    )
    if _is_plain(adapter):
        comment += "\nOllama also takes the folder that peft wrote: ADAPTER ./adapter"
    lines = ("FROM ./base.gguf", f"ADAPTER ./{out.name}")
    return build_modelfile(_renderer(trained_with), lines, read_shape(base).max_position_embeddings, comment)


def _is_plain(adapter: PeftFolder) -> bool:
    """Say whether one rank and alpha say how strong the adapter is: Ollama reads no more of its settings."""
    config = adapter.config
    return all(config.scaling(module) == config.lora_alpha / config.r for module in adapter.modules)


def _renderer(folder: Path) -> Renderer:
    return Renderer(load_tokenizer(folder))
