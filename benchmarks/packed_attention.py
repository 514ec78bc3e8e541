"""Packed rows with SDPA's mask of all pairs and without it: `python -m benchmarks.packed_attention`, on a GPU.

A base of random weights in the shape of Llama 3.2 1B, in bfloat16 with LoRA of rank 16 on all linear layers, takes rows
of documents of skewed lengths forward and backward under autocast, as training does. The head and its loss, which are
the same for both, are left out. A row that does not fit says so.
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from benchmarks.random_base import write_base
from evaluation.model import Attention, ModelSpec, load_base
from evaluation.rendering import Example
from finetune.adapter import build_adapter
from finetune.model_shape import ModelShape
from finetune.packing import pack_examples
from finetune.published_shapes import PUBLISHED
from finetune.recipe import Adapter
from finetune.varlen_attention import VarlenAttention, torch_kernel

SHAPE = PUBLISHED["Llama-3.2-1B"].shape
ROWS = (2048, 8192, 16_384)
"""Tokens of a row."""
ATTENTIONS: tuple[Attention, ...] = ("sdpa", "varlen")
PASSES = 5
"""Measured ones; the one before them is not, since kernels are loaded in it."""
MEDIAN_TOKENS, SIGMA = 200, 1.0
"""Of a document, whose length is log-normal: one in six is longer than 540 tokens."""
HEADER = (
    "| tokens a row | documents | longest | attention | tokens/s | times sdpa | peak GB | same gradients again |\n"
    "| ---: | ---: | ---: | --- | ---: | ---: | ---: | --- |"
)


@dataclass(frozen=True)
class Row:
    """Documents one after another."""

    lengths: tuple[int, ...]
    inputs: dict[str, Tensor]
    """`input_ids` and `position_ids`, each of shape (1, T)."""
    slope_D: Tensor
    """What the last hidden states are multiplied with for a loss."""

    @property
    def tokens(self) -> int:
        """Count the tokens."""
        return sum(self.lengths)


@dataclass(frozen=True)
class Measured:
    """What forward and backward pass over a row took."""

    seconds: float
    """Of one pass, the mean of `PASSES`."""
    peak_bytes: int
    """Allocated at most, weights included."""
    repeats: bool
    """Whether the last pass had the first one's gradients, to the bit."""


def document_lengths(tokens: int, seed: int = 0) -> tuple[int, ...]:
    """Draw lengths of documents that fill a row; the last is cut to what is left."""
    draw = random.Random(seed)
    lengths: list[int] = []
    left = tokens
    while left:
        lengths.append(min(left, max(8, round(MEDIAN_TOKENS * draw.lognormvariate(0, SIGMA)))))
        left -= lengths[-1]
    return tuple(lengths)


def load(folder: Path, shape: ModelShape) -> PeftModel:
    """Write a base into an empty folder and load it with a new adapter, ready to be trained by either attention."""
    VarlenAttention(torch_kernel()).register()
    write_base(folder, shape)
    return build_adapter(load_base(ModelSpec(folder)), Adapter(kind="lora", rank=16), 0).train()


def row_for(model: PeftModel, tokens: int) -> Row:
    """Make a row of random tokens where a model is."""
    lengths, draw = document_lengths(tokens), random.Random(1)
    texts = [tuple(draw.randrange(300, 600) for _ in range(length)) for length in lengths]
    packed = pack_examples([Example(text, text) for text in texts])
    inputs = {name: packed[name].to(model.device) for name in ("input_ids", "position_ids")}
    generator = torch.Generator(model.device).manual_seed(2)
    hidden = int(model.get_base_model().config.hidden_size)
    return Row(lengths, inputs, torch.randn(hidden, generator=generator, device=model.device))


def measure(model: PeftModel, attention: Attention, row: Row) -> Measured | None:
    """Take a row forward and backward by an attention; nothing where memory runs out."""
    model.get_base_model().set_attn_implementation(attention)
    try:
        return _measure(model, row)
    except torch.OutOfMemoryError:
        return None
    finally:
        model.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()


def _measure(model: PeftModel, row: Row) -> Measured:
    first = _gradients_of_a_pass(model, row)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(PASSES):
        last = _gradients_of_a_pass(model, row)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / PASSES
    repeats = all(torch.equal(one, other) for one, other in zip(first, last, strict=True))
    return Measured(seconds, torch.cuda.max_memory_allocated(), repeats)


def _gradients_of_a_pass(model: PeftModel, row: Row) -> list[Tensor]:
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        hidden_1TD = model.get_base_model().base_model(**row.inputs, use_cache=False).last_hidden_state
    (hidden_1TD.float() @ row.slope_D).sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def line(row: Row, attention: str, measured: Measured | None, by_sdpa: Measured | None) -> str:
    """Write a row of the table."""
    what = f"| {row.tokens:,} | {len(row.lengths)} | {max(row.lengths):,} | {attention} |"
    if measured is None:
        return f"{what} out of memory | | | |"
    times = f"{by_sdpa.seconds / measured.seconds:.2f}" if by_sdpa else "–"
    again = "yes" if measured.repeats else "no"
    return f"{what} {row.tokens / measured.seconds:,.0f} | {times} | {measured.peak_bytes / 1e9:.2f} | {again} |"


def main() -> None:
    """Measure every row by every attention, and print a table as it comes."""
    if not torch.cuda.is_available():
        raise SystemExit("packed_attention needs CUDA, and torch sees no GPU here")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n\n{HEADER}", flush=True)
    with tempfile.TemporaryDirectory(prefix="packed-attention-") as scratch:
        model = load(Path(scratch), SHAPE)
        for tokens in ROWS:
            row = row_for(model, tokens)
            by_sdpa: Measured | None = None
            for attention in ATTENTIONS:
                measured = measure(model, attention, row)
                by_sdpa = measured if attention == "sdpa" else by_sdpa
                print(line(row, attention, measured, by_sdpa), flush=True)


if __name__ == "__main__":
    main()
