"""A model folder becomes a GGUF file for llama.cpp, Ollama and LM Studio: the LLaMA architecture, with its tokenizer.

What llama.cpp expects of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType
from gguf.quants import quantize
from torch import Tensor

from evaluation.files import staged_file
from finetune.base_files import BaseFiles, open_base, read_weights
from finetune.errors import DataError
from finetune.gguf_names import ARCHITECTURE, LlamaShape, gguf_name, permuted, read_shape
from finetune.gguf_tokenizer import add_tokenizer

Kind = Literal["f32", "f16", "bf16", "q8_0", "q4_1", "q4_0"]

FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_1": LlamaFileType.MOSTLY_Q4_1,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}


def export_gguf(
    folder: Path, out: Path, kind: Kind, name: str, advance: Callable[[int], None] = lambda _: None
) -> None:
    """Write a model folder as one GGUF file, whole or not at all.

    Matrices are written in the given kind; those whose rows no block of the kind divides in fp16, the norms in fp32.

    Raises:
        DataError: it is not a LLaMA model, or has something that the format cannot say.
    """
    base = open_base(folder)
    shape = read_shape(base)
    with staged_file(out) as staging:
        writer = GGUFWriter(staging, ARCHITECTURE, use_temp_file=True)
        _add_metadata(writer, shape, kind, name)
        add_tokenizer(writer, folder, shape.vocab_size)
        if (factors := _frequency_factors(shape)) is not None:
            writer.add_tensor("rope_freqs.weight", factors)
        for tensor_name, weight in _tensors(base, shape):
            add_weight(writer, tensor_name, weight, kind)
            advance(1)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_metadata(writer: GGUFWriter, shape: LlamaShape, kind: Kind, name: str) -> None:
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(2)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.heads_of_keys)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope.rope_theta or 10_000.0)
    writer.add_vocab_size(shape.vocab_size)
    if shape.rope.rope_type == "linear":
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_float32("llama.rope.scaling.factor", shape.rope.factor)


def _tensors(base: BaseFiles, shape: LlamaShape) -> Iterator[tuple[str, Tensor]]:
    for name, weight in read_weights(base):
        yield gguf_name(name, base), permuted(name, weight, shape)


def add_weight(writer: GGUFWriter, name: str, weight: Tensor, kind: Kind) -> None:
    """Write a weight in a kind; a vector in fp32, a matrix whose rows no block of the kind divides in fp16.

    Raises:
        DataError: it has values that fp16 cannot hold.
    """
    values = weight.to(torch.float32).numpy()
    wanted = GGMLQuantizationType[kind.upper()]
    if values.ndim < 2 or wanted == GGMLQuantizationType.F32:
        writer.add_tensor(name, values)
        return
    block, _ = GGML_QUANT_SIZES[wanted]
    if wanted != GGMLQuantizationType.F16 and values.shape[-1] % block == 0:
        writer.add_tensor(name, quantize(values, wanted), raw_dtype=wanted)
        return
    if np.abs(values).max() > np.finfo(np.float16).max:
        raise DataError(f"{name} has values that float16 cannot hold", where=name, hint="write bf16 or f32")
    writer.add_tensor(name, values.astype(np.float16))


def _frequency_factors(shape: LlamaShape) -> np.ndarray | None:
    """Return what each rotary frequency is divided by in LLaMA 3.x, shape (head width / 2,).

    Long waves are stretched by `factor`, short ones not, those between in proportion:
    https://github.com/meta-llama/llama-models/blob/main/models/llama3/model.py, apply_scaling.
    """
    rope = shape.rope
    if rope.rope_type != "llama3":
        return None
    width = shape.head_width
    frequencies = (rope.rope_theta or 10_000.0) ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    turns = rope.original_max_position_embeddings * frequencies / (2 * math.pi)
    between = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = np.clip(between, 0.0, 1.0)
    return (1 / (kept + (1 - kept) / rope.factor)).astype(np.float32)


def read_frequencies(file: Path) -> Tensor:
    """Return the inverse rotary frequencies that a file states, shape (head width / 2,), as llama.cpp computes them."""
    reader = GGUFReader(file)
    base, width = (reader.fields[f"llama.rope.{key}"].contents() for key in ("freq_base", "dimension_count"))
    frequencies = float(base) ** -(np.arange(0, int(width), 2, dtype=np.float64) / int(width))
    factors = [tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    scaling = reader.fields.get("llama.rope.scaling.factor")
    stretched = frequencies / (factors[0] if factors else 1.0) / (float(scaling.contents()) if scaling else 1.0)
    return torch.from_numpy(stretched.astype(np.float32))
