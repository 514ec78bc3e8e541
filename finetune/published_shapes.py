"""The sizes of published LLaMA models, for bases that are named and not on this disk.

LLaMA 1: table 2 of https://arxiv.org/abs/2302.13971 for layers, heads and hidden size; the inner size of the MLP is
2/3 of 4 times the hidden one, rounded up to 256 (https://github.com/meta-llama/llama/blob/main/llama/model.py).
The others: config.json of the named repositories on https://huggingface.co.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune.model_shape import ModelShape


@dataclass(frozen=True)
class Published:
    """A published model: how repositories name it, its sizes, and its parameters as published or counted."""

    names: tuple[str, ...]
    """Lower case; a repository's name that begins with one of these, after its owner, is of this shape."""
    shape: ModelShape
    parameters: int
    """Of the published checkpoint: the sum of the shapes in its safetensors files."""


def _llama(
    layers: int, hidden: int, intermediate: int, heads: tuple[int, int], vocabulary: int, *, tied: bool = False
) -> ModelShape:
    return ModelShape(layers, hidden, intermediate, *heads, hidden // heads[0], vocabulary, tied)


PUBLISHED: dict[str, Published] = {
    "LLaMA-7B": Published(
        ("llama-7b", "open_llama_7b", "vicuna-7b"), _llama(32, 4096, 11008, (32, 32), 32000), 6_738_415_616
    ),
    "LLaMA-13B": Published(
        ("llama-13b", "open_llama_13b", "vicuna-13b"), _llama(40, 5120, 13824, (40, 40), 32000), 13_015_864_320
    ),
    "LLaMA-33B": Published(("llama-30b", "llama-33b"), _llama(60, 6656, 17920, (52, 52), 32000), 32_528_943_616),
    "LLaMA-65B": Published(("llama-65b",), _llama(80, 8192, 22016, (64, 64), 32000), 65_285_660_672),
    "Llama-2-7B": Published(("llama-2-7b",), _llama(32, 4096, 11008, (32, 32), 32000), 6_738_415_616),
    "Llama-2-13B": Published(("llama-2-13b",), _llama(40, 5120, 13824, (40, 40), 32000), 13_015_864_320),
    "Llama-2-70B": Published(("llama-2-70b",), _llama(80, 8192, 28672, (64, 8), 32000), 68_976_648_192),
    "Llama-3-8B": Published(
        ("meta-llama-3-8b", "llama-3-8b", "meta-llama-3.1-8b", "llama-3.1-8b"),
        _llama(32, 4096, 14336, (32, 8), 128_256),
        8_030_261_248,
    ),
    "Llama-3-70B": Published(
        ("meta-llama-3-70b", "llama-3-70b", "meta-llama-3.1-70b", "llama-3.1-70b", "llama-3.3-70b"),
        _llama(80, 8192, 28672, (64, 8), 128_256),
        70_553_706_496,
    ),
    "Llama-3.1-405B": Published(
        ("meta-llama-3.1-405b", "llama-3.1-405b"), _llama(126, 16384, 53248, (128, 8), 128_256), 405_853_388_800
    ),
    "Llama-3.2-1B": Published(("llama-3.2-1b",), _llama(16, 2048, 8192, (32, 8), 128_256, tied=True), 1_235_814_400),
    "Llama-3.2-3B": Published(("llama-3.2-3b",), _llama(28, 3072, 8192, (24, 8), 128_256, tied=True), 3_212_749_824),
    "TinyLlama-1.1B": Published(("tinyllama-1.1b",), _llama(22, 2048, 5632, (32, 4), 32000), 1_100_048_384),
    "SmolLM2-135M": Published(("smollm2-135m",), _llama(30, 576, 1536, (9, 3), 49152, tied=True), 134_515_008),
}


def published_shape(base: str) -> tuple[str, ModelShape] | None:
    """Return the name and sizes of the published model that a base's name says it is, or nothing.

    `base` is a hub id, or a path or `pypi:` reference whose last part is named after the model.
    """
    last = base.rpartition("/")[2].lower()
    for name, published in PUBLISHED.items():
        for known in published.names:
            rest = last.removeprefix(known)
            if rest != last and (not rest or rest[0] in "-._"):
                return name, published.shape
    return None
