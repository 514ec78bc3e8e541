"""A base of random weights in the shape of a LLaMA: `python -m benchmarks.growth_models FOLDER SHAPE TOKENIZER`."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 49_152


@dataclass(frozen=True)
class Shape:
    """The sizes of a model whose embedding is tied."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int


SHAPES = {
    "40M": Shape(320, 864, 12, 5, 5),
    "135M": Shape(576, 1536, 30, 9, 3),
    "360M": Shape(960, 2560, 32, 15, 5),
    "1.7B": Shape(2048, 8192, 24, 32, 32),
}
"""SmolLM2's, from the config.json of each, and one below them."""


def write_model(folder: Path, shape: Shape, tokenizer: Path) -> None:
    """Write random weights in bfloat16, with the tokenizer of another base."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        if (tokenizer / name).exists():
            shutil.copy(tokenizer / name, folder / name)


def main() -> None:
    """Write one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("tokenizer", type=Path)
    given = parser.parse_args()
    write_model(given.folder, SHAPES[given.shape], given.tokenizer)


if __name__ == "__main__":
    main()
