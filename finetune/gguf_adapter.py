"""A LoRA adapter of peft becomes a GGUF file that llama.cpp and Ollama load beside the base's file.

llama.cpp adds alpha / rank · B·A to a weight, with one alpha for the whole file and the rank of the tensors at hand:
https://github.com/ggml-org/llama.cpp/blob/0650ea8c05bc6e31273182470197e9b2e50253e0/src/llama-adapter.h, get_scale.
What peft's scaling of a module differs from that by (rsLoRA, ranks and alphas by pattern) is folded into its B.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from evaluation.files import sha256_of_file, sha256_of_folder, staged_file
from finetune.base_files import BaseFiles
from finetune.errors import DataError, ProofFailed
from finetune.gguf_export import FILE_TYPES, add_weight
from finetune.gguf_names import ARCHITECTURE, LlamaShape, gguf_name, permuted, read_shape, unpermuted
from finetune.llama_cpp_check import LlamaCppProof
from finetune.merging_shards import check_fits
from finetune.peft_config import PeftConfig
from finetune.peft_weights import HEAD, Change, LowRank, PeftFolder, Replaced, Rows

AdapterKind = Literal["f32", "f16", "bf16"]

LARGEST_ERROR = {"f32": 2**-20, "f16": 2**-10, "bf16": 2**-7}
"""Length of what a module's change is off by, as a share of the change: twice what rounding one factor leaves."""

Advance = Callable[[int], None]


class AdapterProof(BaseModel):
    """<file>.json beside an exported adapter: each module's change, read back and compared with peft's."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: str
    adapter_sha256: str
    file_sha256: str
    alpha: float
    """The one alpha of the file; what a module's scaling differs from alpha / rank by is in its B."""
    errors: dict[str, float]
    """Module → ‖change of the file - change of peft‖ / ‖change of peft‖."""
    largest_error: float
    llama_cpp: LlamaCppProof | None = None
    """What llama.cpp made of the base's file with this one on it, where it was asked."""


def check_exportable(adapter: PeftFolder, base: BaseFiles) -> None:
    """Check that an adapter is nothing but products that are added to weights that the base's file has.

    Raises:
        DataError: names the module, why the format cannot hold it, and what to do instead.
    """
    check_fits(base, adapter)
    for module in adapter.modules:
        reason = _why_not(adapter.change(module))
        if module == HEAD and base.tied:
            reason = "the base's output embedding is its input embedding, so its file has no weight of that name"
        if reason is not None:
            hint = (
                "fold it in and export the whole: finetune adapter merge ADAPTER --out merged, finetune export merged"
            )
            raise DataError(f"{module}: {reason}", where=str(adapter.folder), hint=hint)


def _why_not(change: Change) -> str | None:
    match change:
        case Replaced():
            return "it was trained whole (modules_to_save), and an adapter file holds products only"
        case Rows():
            return "single rows of it were trained, and an adapter file holds products only"
        case LowRank(own=own) if own is not None:
            return "it comes with an embedding of its own, and an adapter file holds products only"
        case LowRank(magnitude=magnitude) if magnitude is not None:
            return "DoRA sets the lengths of the changed rows, which llama.cpp does not do"
        case LowRank(residual=residual) if residual is not None:
            return f"{residual} subtracts its start from the base, which llama.cpp does not do"
        case LowRank(is_embedding=True):
            return "llama.cpp would apply a change of the input embedding to a tied output embedding as well"
    return None


def export_adapter(
    adapter: PeftFolder, base: BaseFiles, out: Path, kind: AdapterKind, advance: Advance = lambda _: None
) -> None:
    """Write an adapter as one GGUF file, whole or not at all.

    Raises:
        DataError: it is not an adapter that the format can hold, or does not fit the base.
    """
    shape = read_shape(base)
    check_exportable(adapter, base)
    with staged_file(out) as staging:
        writer = GGUFWriter(staging, ARCHITECTURE, use_temp_file=True)
        writer.add_type("adapter")
        writer.add_name(adapter.folder.resolve().name)
        writer.add_file_type(FILE_TYPES[kind])
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", _alpha(adapter.config))
        for module in adapter.modules:
            name, down, up = _as_llama_cpp_has_it(adapter, module, base, shape)
            add_weight(writer, f"{name}.lora_a", down, kind)
            add_weight(writer, f"{name}.lora_b", up, kind)
            advance(1)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _as_llama_cpp_has_it(
    adapter: PeftFolder, module: str, base: BaseFiles, shape: LlamaShape
) -> tuple[str, Tensor, Tensor]:
    """Return the name of the changed weight, A of shape (rank, in) and B of shape (out, rank)."""
    change = adapter.change(module)
    assert isinstance(change, LowRank), f"{module} was not checked"
    weight = f"{module}.weight"
    given = _alpha(adapter.config) / change.down.shape[0]
    up = change.up.float() * (change.scaling / given)
    return gguf_name(weight, base), change.down.float(), permuted(weight, up, shape)


def _alpha(config: PeftConfig) -> float:
    return config.lora_alpha or 1.0  # llama.cpp takes an alpha of 0 for none at all, and scales by 1


def prove_adapter(
    adapter: PeftFolder, base: BaseFiles, file: Path, kind: AdapterKind, advance: Advance = lambda _: None
) -> AdapterProof:
    """Read an adapter file back, scale it as llama.cpp does, and compare each module's change with peft's.

    Raises:
        ProofFailed: a change is missing, or further off than the kind's rounding.
    """
    reader = GGUFReader(file)
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    shape = read_shape(base)
    errors: dict[str, float] = {}
    for module in adapter.modules:
        name = gguf_name(f"{module}.weight", base)
        if not {f"{name}.lora_a", f"{name}.lora_b"} <= tensors.keys():
            raise ProofFailed(f"the file does not change {name}", where=str(file))
        down, up = (
            torch.tensor(dequantize(tensors[f"{name}.{end}"].data, tensors[f"{name}.{end}"].tensor_type))
            for end in ("lora_a", "lora_b")
        )
        found = unpermuted(f"{module}.weight", (alpha / down.shape[0]) * (up @ down), shape)
        errors[module] = _relative_error(found, adapter.change(module))
        advance(1)
    worst = max(errors, key=errors.__getitem__)
    if not errors[worst] <= LARGEST_ERROR[kind]:
        hint = "write f32 or bf16, which hold small values" if kind == "f16" else ""
        what = f"the change of {worst} is off by {errors[worst]:.1e}, the limit is {LARGEST_ERROR[kind]:.1e}"
        raise ProofFailed(what, where=str(file), hint=hint)
    return AdapterProof(
        kind=kind,
        adapter_sha256=sha256_of_folder(adapter.folder),
        file_sha256=sha256_of_file(file),
        alpha=alpha,
        errors=errors,
        largest_error=errors[worst],
    )


def _relative_error(found: Tensor, change: Change) -> float:
    assert isinstance(change, LowRank)
    expected = change.product()
    length, off = float(expected.norm()), float((found - expected).norm())
    return off / length if length else off
