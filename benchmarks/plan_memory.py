"""Predicted and measured peak memory of training on a CPU: `python -m benchmarks.plan_memory`.

Each configuration is a recipe on a base of random weights. Its examples are prepared, its memory is predicted by what
`finetune plan` computes, and it is trained for a few steps by `finetune train` in a process of its own, whose largest
resident memory is what that process writes down itself (training/summary.json).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.random_base import WORDS, write_base
from finetune.model_shape import ModelShape
from finetune.planning import Question, plan
from finetune.recipe_file import load_recipe

STEPS = 1


SHAPES = {
    "10m": ModelShape(6, 256, 688, 4, 4, 64, 16_384, tied=True),
    "60m": ModelShape(14, 512, 1_408, 8, 8, 64, 32_000, tied=True),
    "135m": ModelShape(30, 576, 1_536, 9, 3, 64, 49_152, tied=True),
}
"""The last is SmolLM2-135M's (https://huggingface.co/HuggingFaceTB/SmolLM2-135M/blob/main/config.json)."""


@dataclass(frozen=True)
class Configuration:
    """What is trained: a base, how it is stored, and what is held at a time."""

    shape: str
    method: str
    """`lora`, `nf4`; with `+ckpt`, gradient checkpointing."""
    dtype: str
    length: int
    """Tokens of an example, nearly."""
    micro_batch: int
    """Tokens that are held at a time."""
    batches: str = "padded"

    def __str__(self) -> str:
        return f"{self.shape} {self.method} {self.dtype} {self.length} {self.micro_batch} {self.batches}"


CONFIGURATIONS = (
    Configuration("10m", "lora", "float32", 128, 1024),
    Configuration("10m", "lora", "bfloat16", 1024, 4096, "packed"),
    Configuration("10m", "nf4", "bfloat16", 512, 8192),
    Configuration("60m", "lora", "float32", 128, 1024),
    Configuration("60m", "lora", "bfloat16", 256, 2048),
    Configuration("60m", "lora+ckpt", "bfloat16", 256, 4096),
    Configuration("60m", "lora", "bfloat16", 512, 2048, "packed"),
    Configuration("60m", "nf4", "bfloat16", 512, 1024),
    Configuration("60m", "nf4+ckpt", "bfloat16", 1024, 2048),
    Configuration("135m", "lora", "bfloat16", 128, 512),
    Configuration("135m", "lora+ckpt", "bfloat16", 512, 1024),
    Configuration("135m", "lora", "bfloat16", 900, 1024),
    Configuration("135m", "nf4", "bfloat16", 256, 1024),
    Configuration("135m", "nf4+ckpt", "float32", 256, 1024),
)


def write_recipe(folder: Path, asked: Configuration) -> Path:
    """Write rows of nearly one length, enough for a few steps, and the recipe."""
    rows = 12 + 2 * STEPS * max(1, asked.micro_batch // asked.length)
    lines = ["text"]
    for number in range(rows):
        # A byte-level token for each word and its space; a few numbers take some more.
        words = " ".join(WORDS[(number * 7 + i) % len(WORDS)] for i in range(asked.length - 12 - number % 5))
        lines.append(f"{words} {number}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    method, _, checkpointing = asked.method.partition("+")
    recipe = {
        "version": 1,
        "name": "plan-memory",
        "base": {"model": str(folder / "base"), "dtype": asked.dtype},
        **({"quantization": {"kind": "nf4"}, "merge": {"onto": "dequantized"}} if method == "nf4" else {}),
        "adapter": {"kind": "lora", "rank": 16},
        "data": {
            "train": [{"source": str(folder / "rows.csv"), "rows": "text"}],
            "held_out": {"fraction": 0.25},
            "max_tokens": min(max(64, 2 * asked.length), asked.micro_batch),
            "audit": {"maximum_duplicates": 1.0},
            "leakage": {"maximum_share": 1.0, "maximum_near_share": 1.0},
        },
        "training": {
            "tokens_per_step": asked.micro_batch,
            "gradient_checkpointing": bool(checkpointing),
            "batches": asked.batches,
        },
    }
    file = folder / "plan-memory.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return file


def finetune(command: str, folder: Path, recipe: Path) -> None:
    """Run a command in a process of its own."""
    arguments = [command, str(recipe), "--out", str(folder / "run"), "--cache", str(folder / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "finetune.cli", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])


def measure(folder: Path, asked: Configuration) -> tuple[int, int]:
    """Return predicted and measured peak memory, in bytes."""
    write_base(folder / "base", SHAPES[asked.shape])
    recipe = write_recipe(folder, asked)
    finetune("prepare", folder, recipe)
    question = Question(device="cpu", memory="1TB")  # whatever there is: nothing is to be changed
    predicted = plan(load_recipe(str(recipe)).recipe, question, folder / "run", folder / "cache").fit.memory.total
    finetune("train", folder, recipe)
    summary = json.loads((folder / "run" / "training" / "summary.json").read_bytes())
    assert summary["memory"]["tokens_per_micro_batch"] is None, "memory ran out, and the micro-batches were cut"
    return predicted, int(summary["peak_memory_bytes"])


def main() -> None:
    """Measure the configurations whose names hold every given word, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="such as 60m ckpt; all configurations if none is given")
    given = parser.parse_args()
    print("| base | method | type | tokens an example | tokens at a time | | predicted MB | measured MB | ratio |")
    print("| --- | --- | --- | ---: | ---: | --- | ---: | ---: | ---: |")
    for asked in CONFIGURATIONS:
        if all(word in str(asked) for word in given.words):
            with tempfile.TemporaryDirectory(prefix="plan-memory-") as scratch:
                predicted, measured = measure(Path(scratch), asked)
            settings = f"{asked.shape} | {asked.method} | {asked.dtype} | {asked.length} | {asked.micro_batch}"
            figures = f"{predicted / 1e6:,.0f} | {measured / 1e6:,.0f} | {predicted / measured:.2f}"
            print(f"| {settings} | {asked.batches} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
