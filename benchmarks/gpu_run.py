"""What a QLoRA run takes on a GPU, by the size of the model: `python -m benchmarks.gpu_run 1b:run 8b:train`.

A base of random weights in the shape of a published model is written in bfloat16, with a tokenizer of its own, and a
recipe is run on it through the command line. Weights that know nothing cost what others cost; nothing is learnt of
what an adapter is worth.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.merge_scale import SHAPES
from benchmarks.random_base import WORDS
from finetune.model_shape import ModelShape

LAYERS = {"tiny": 2, "1b": 16, "8b": 32, "70b": 80}


def shape_of(name: str) -> ModelShape:
    """Return the shape that a run has, with a head of its own."""
    one = SHAPES[name]
    head = one.hidden // one.heads
    return ModelShape(
        LAYERS[name], one.hidden, one.intermediate, one.heads, one.heads_of_keys, head, one.vocabulary, tied=False
    )


def write_recipe(folder: Path, rows: int, words: int) -> Path:
    """Write a classification of random words, and a QLoRA recipe for it."""
    order = random.Random(0)
    lines = ["text,label"]
    for number in range(rows):
        first = order.choice(WORDS)
        rest = " ".join(order.choice(WORDS) for _ in range(words))
        lines.append(f"{first} {rest} {number},{('red', 'green', 'blue')[WORDS.index(first) % 3]}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = {
        "version": 1,
        "name": "gpu-run",
        "base": {"model": str(folder / "base"), "dtype": "bfloat16"},
        "quantization": {"kind": "nf4"},
        "adapter": {"kind": "lora", "rank": 16},
        "data": {
            "train": [{"source": str(folder / "rows.csv"), "rows": "classification"}],
            "validation": {"fraction": 0.05},
            "held_out": {"fraction": 0.05},
            "max_tokens": 1024,
        },
        "training": {"tokens_per_step": 16384, "learning_rate": 0.001, "validations": 1},
        "merge": {"dtype": "bfloat16", "minimum_gain_kept": 0.0, "minimum_agreement": 0.5},
        "evaluation": {"max_new_tokens": 4},
    }
    file = folder / "gpu-run.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return file


def main() -> None:
    """Read the arguments, run each shape, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", nargs="+", metavar="SHAPE:COMMAND", help="tiny, 1b, 8b or 70b; run or train")
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--words", type=int, default=200, help="of each row")
    parser.add_argument("--tracebacks", type=int, default=0, metavar="SECONDS", help="show where it is, so often")
    given = parser.parse_args()
    for measured in given.measured:
        name, _, command = measured.partition(":")
        with tempfile.TemporaryDirectory(prefix="gpu-run-") as scratch:
            measure(Path(scratch), name, command or "run", Size(given.rows, given.words), given.tracebacks)


@dataclass(frozen=True)
class Size:
    """How much there is to learn from."""

    rows: int
    words: int
    """Of each row."""


WRITE = """
import sys
from pathlib import Path
from benchmarks.gpu_run import shape_of
from benchmarks.random_base import write_base
write_base(Path(sys.argv[1]), shape_of(sys.argv[2]))
"""
RUN = """
import faulthandler, sys
from finetune.cli import main
seconds = int(sys.argv.pop(1))
if seconds:
    faulthandler.dump_traceback_later(seconds, repeat=True)
main()
"""


def measure(folder: Path, name: str, command: str, size: Size, tracebacks: int) -> None:
    """Run one shape in a process of its own, whose lines are shown as they come."""
    began = time.perf_counter()
    beside = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    subprocess.run([sys.executable, "-c", WRITE, str(folder / "base"), name], check=True, env=beside)
    recipe = write_recipe(folder, size.rows, size.words)
    written = time.perf_counter()
    arguments = [command, str(recipe), "--out", str(folder / "run"), "--cache", str(folder / "cache")]
    done = subprocess.run([sys.executable, "-c", RUN, str(tracebacks), *arguments], check=False, env=beside)
    seconds = time.perf_counter() - written
    print(f"{name} {command}: status {done.returncode}, base in {written - began:.0f} s, {seconds:.0f} s", flush=True)
    if done.returncode:
        return
    summary = json.loads((folder / "run" / "training" / "summary.json").read_bytes())
    kept = ("device", "steps", "tokens", "seconds", "tokens_per_second", "peak_memory_bytes", "trainable_parameters")
    print({key: summary[key] for key in kept}, summary["choices"], flush=True)
    proof = folder / "run" / "merged" / "merge.json"
    if proof.exists():
        merged = json.loads(proof.read_bytes())
        print({key: merged[key] for key in ("onto", "agreement", "max_logit_difference", "logit_scale", "gain_kept")})


if __name__ == "__main__":
    main()
