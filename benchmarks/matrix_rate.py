"""The rate of bf16 matrix products at the sizes of a model's layers: `python -m benchmarks.matrix_rate MODEL`.

It bounds how fast training can be: a token costs two operations a weight forward, and two for the gradient of what
came in; the weights themselves are frozen and have none.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

TOKENS = 1024
REPEATS = 15


@dataclass(frozen=True)
class Sizes:
    """The (in, out) of each matrix of a layer, and how many layers there are."""

    layer: tuple[tuple[int, int], ...]
    layers: int
    embedding: int
    """Weights of the embedding; where it is tied, those of the head as well."""

    @property
    def parameters(self) -> int:
        """Count the weights of all products: the layers' and the head's."""
        return self.layers * sum(inside * outside for inside, outside in self.layer) + self.embedding


def read_sizes(model: Path) -> Sizes:
    """Read the sizes of a LLaMA from its config.json."""
    config = json.loads((model / "config.json").read_bytes())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_size = config.get("head_dim") or hidden // heads
    queries, keys = heads * head_size, config["num_key_value_heads"] * head_size
    inner = config["intermediate_size"]
    attention = ((hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden))
    mlp = ((hidden, inner), (hidden, inner), (inner, hidden))
    return Sizes((*attention, *mlp), config["num_hidden_layers"], config["vocab_size"] * hidden)


def measure_rate(sizes: Sizes) -> float:
    """Return the operations a second of one layer's products with 1,024 tokens, each at its median of 15."""
    seconds = 0.0
    for inside, outside in sizes.layer:
        entering = torch.randn(TOKENS, inside).bfloat16()
        weight = torch.randn(outside, inside).bfloat16()
        F.linear(entering, weight)
        seconds += median(_seconds_of(entering, weight) for _ in range(REPEATS))
    return 2 * TOKENS * sum(inside * outside for inside, outside in sizes.layer) / seconds


def _seconds_of(entering: torch.Tensor, weight: torch.Tensor) -> float:
    began = time.perf_counter()
    F.linear(entering, weight)
    return time.perf_counter() - began


def share_of_rate(tokens_per_second: float, parameters: int, rate: float) -> float:
    """Return 4 × parameters × tokens/s ÷ rate, with the head (the tied embedding) among the parameters."""
    return 4 * parameters * tokens_per_second / rate


def main() -> None:
    """Measure and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    sizes = read_sizes(parser.parse_args().model)
    found = {"rate": measure_rate(sizes), "parameters": sizes.parameters, "threads": torch.get_num_threads()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
