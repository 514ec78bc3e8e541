"""Predicted and measured peak memory, and speed, of training on a GPU: `python -m benchmarks.plan_gpu 1b 8b`.

Bases are of random weights in the shapes of published models. Each configuration is predicted by what `finetune plan`
computes for this machine, and trained for a few steps by the function behind `finetune train`. They share a process,
since importing and starting CUDA take longer than the steps; what one leaves allocated is written down beside the next,
and should be cuBLAS's workspace alone.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import random
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console

from benchmarks.random_base import write_base
from evaluation.rendering import Example
from finetune.console import Reporter
from finetune.example_files import write_examples
from finetune.model_shape import ModelShape
from finetune.plan_base import find_base
from finetune.plan_devices import choose_device
from finetune.plan_fit import Asked, Fit, fit
from finetune.plan_work import Lengths
from finetune.published_shapes import PUBLISHED
from finetune.recipe import Recipe
from finetune.training import train
from finetune.training_job import TrainingJob
from finetune.training_records import StepMetrics, TrainingSummary

STEPS = 4
"""The first is not counted in the speed: kernels are compiled and tried in it."""
SPREAD = 5
"""Tokens by which the lengths of examples differ, so that attention is given a mask."""
BASES = {
    "tiny": ModelShape(2, 64, 128, 4, 2, 16, 600, tied=True),
    "60m": ModelShape(14, 512, 1_408, 8, 8, 64, 32_000, tied=True),
    "1b": PUBLISHED["Llama-3.2-1B"].shape,
    "8b": PUBLISHED["Llama-3-8B"].shape,
}


@dataclass(frozen=True)
class Configuration:
    """What is trained: a base, how it is stored, and what is held at a time."""

    base: str
    method: str
    """`lora` or `nf4`; with `+ckpt`, gradient checkpointing."""
    length: int
    """Tokens of an example, at most."""
    micro_batch: int
    """Tokens that are held at a time."""
    step: int
    """Tokens of a step."""
    batches: str = "padded"

    def __str__(self) -> str:
        return f"{self.base} {self.method} {self.length} {self.micro_batch} {self.step} {self.batches}"


CONFIGURATIONS = (
    Configuration("tiny", "lora", 32, 128, 128),
    Configuration("tiny", "nf4+ckpt", 32, 64, 128),
    Configuration("1b", "nf4", 512, 8192, 8192),
    Configuration("1b", "lora", 512, 8192, 8192),
    Configuration("1b", "lora+ckpt", 512, 8192, 8192),
    Configuration("1b", "nf4+ckpt", 512, 16_384, 16_384),
    Configuration("1b", "lora", 2048, 8192, 8192),
    Configuration("1b", "nf4", 4096, 4096, 4096),
    Configuration("1b", "lora", 128, 2048, 2048),
    Configuration("1b", "nf4", 512, 4096, 4096, "packed"),
    Configuration("8b", "nf4+ckpt", 256, 16_384, 16_384),
    Configuration("8b", "lora+ckpt", 2048, 8192, 16_384),
    Configuration("8b", "nf4", 256, 2048, 16_384),
    Configuration("8b", "lora", 512, 4096, 16_384),
    Configuration("8b", "nf4+ckpt", 256, 4096, 16_384),
    Configuration("8b", "nf4", 256, 8192, 16_384),
)


@dataclass(frozen=True)
class Result:
    """What was predicted of a configuration and what it took; bytes."""

    configuration: Configuration
    predicted: int
    terms: dict[str, int]
    allocated: int
    """At the peak of training, as its summary has it."""
    reserved: int
    """By torch's caching allocator, at its peak."""
    left: int
    """Allocated before this configuration was begun."""
    loaded: int
    """Allocated when base and adapter were there."""
    loading: int
    """At the peak before the first step."""
    tokens_per_second: float
    """Without padding, from the end of the first step to that of the last."""
    tokens_per_micro_batch: int | None
    """Where memory ran out, what training went on with."""
    device: str
    choices: dict[str, str]

    @property
    def ratio(self) -> float:
        """Return predicted over measured."""
        return self.predicted / self.allocated


HEADER = (
    "| base | method | tokens an example | tokens at a time | tokens a step | | predicted GB | measured GB | ratio "
    "| reserved GB | tokens/s | attention | optimizer | loss |\n"
    "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- | --- | --- |"
)


def line(result: Result) -> str:
    """Write a row of the table."""
    asked, chosen = result.configuration, result.choices
    cut = f", cut to {result.tokens_per_micro_batch}" if result.tokens_per_micro_batch else ""
    settings = f"{asked.base} | {asked.method} | {asked.length} | {asked.micro_batch} | {asked.step} | {asked.batches}"
    memory = f"{result.predicted / 1e9:.2f} | {result.allocated / 1e9:.2f} | {result.ratio:.2f}"
    speed = f"{result.reserved / 1e9:.2f} | {result.tokens_per_second:,.0f}"
    return (
        f"| {settings}{cut} | {memory} | {speed} | {chosen['attention']} | {chosen['optimizer']} | {chosen['loss']} |"
    )


class Onlooker:
    """Is asked by training whether to end, which it never does, and sees what is allocated before the first step."""

    def __init__(self) -> None:
        """See nothing yet."""
        self.loaded = 0
        self.loading = 0

    def finish_first(self) -> None:
        """Look: base and adapter are there, and no step has been taken."""
        if torch.cuda.is_available():
            self.loaded, self.loading = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()

    def asked(self) -> bool:
        """Never ask for the end."""
        return False

    def end(self, what: str) -> NoReturn:
        """Not be called."""
        raise AssertionError(what)


def recipe_of(asked: Configuration, base: Path) -> Recipe:
    """Write the recipe of a configuration."""
    method, _, checkpointing = asked.method.partition("+")
    document = {
        "version": 1,
        "name": "plan-gpu",
        "base": {"model": str(base), "dtype": "bfloat16"},
        **({"quantization": {"kind": "nf4"}} if method == "nf4" else {}),
        "adapter": {"kind": "lora", "rank": 16},
        "data": {
            "train": [{"source": "rows.jsonl", "rows": "messages"}],
            "held_out": {"fraction": 0.1},
            "max_tokens": asked.length,
        },
        "training": {
            "tokens_per_step": asked.step,
            "tokens_per_micro_batch": asked.micro_batch,
            "gradient_checkpointing": bool(checkpointing),
            "batches": asked.batches,
            "schedule": "constant",
            "warmup_fraction": 0.0,
        },
    }
    return Recipe.model_validate_json(json.dumps(document))


def examples_of(asked: Configuration) -> list[Example]:
    """Make examples of nearly one length, every token labelled, enough for the steps."""
    draw = random.Random(0)
    examples = []
    for number in range(STEPS * asked.step // asked.length):
        ids = tuple(draw.randrange(300, 600) for _ in range(asked.length - number % SPREAD))
        examples.append(Example(ids, ids))
    return examples


def measure(folder: Path, asked: Configuration) -> Result:
    """Predict and train a configuration in an empty folder, on the base that lies beside it."""
    recipe, examples = recipe_of(asked, folder.parent / f"base-{asked.base}"), examples_of(asked)
    (folder / "data").mkdir(parents=True)
    write_examples(folder / "data" / "train.arrow", examples)
    predicted = _predict(recipe, [len(one.input_ids) for one in examples], folder)
    gc.collect()
    torch.cuda.empty_cache()
    left = 0
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        left = torch.cuda.memory_allocated()
    job = TrainingJob(
        recipe=recipe,
        run_folder=folder,
        base_folder=Path(recipe.base.model),
        base_name=asked.base,
        base_revision=None,
        devices=1,
    )
    onlooker = Onlooker()
    train(job, Reporter(Console(file=io.StringIO())), onlooker)
    summary = TrainingSummary.model_validate_json((job.run.training / "summary.json").read_bytes())
    return Result(
        configuration=asked,
        predicted=predicted.memory.total,
        terms=asdict(predicted.memory),
        allocated=summary.peak_memory_bytes,
        reserved=torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0,
        left=left,
        loaded=onlooker.loaded,
        loading=onlooker.loading,
        tokens_per_second=_rate(job.run.training / "metrics.jsonl"),
        tokens_per_micro_batch=summary.memory.tokens_per_micro_batch,
        device=summary.device,
        choices=summary.choices,
    )


def _predict(recipe: Recipe, lengths: list[int], folder: Path) -> Fit:
    base = find_base(recipe.base, folder)
    known = Lengths(tuple(lengths), len(lengths), "the examples")
    return fit(recipe, Asked(base.shape, base.stored_bytes, known, choose_device(None, None), 1))


def _rate(metrics: Path) -> float:
    first, *_, last = (StepMetrics.model_validate_json(text) for text in metrics.read_text().splitlines())
    return (last.tokens - first.tokens) / (last.seconds - first.seconds)


def main() -> None:
    """Measure the configurations whose names hold every given word after the base, and print a table as they come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bases", nargs="+", choices=BASES)
    parser.add_argument("--only", nargs="*", default=[], help="words of the configurations, such as nf4 packed")
    parser.add_argument("--results", type=Path, required=True, help="a folder for plan_gpu.json and plan_gpu.md")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    print(HEADER, flush=True)
    results: list[Result] = []
    for name in given.bases:
        with tempfile.TemporaryDirectory(prefix="plan-gpu-") as scratch:
            write_base(Path(scratch) / f"base-{name}", BASES[name])
            for number, asked in enumerate(CONFIGURATIONS):
                if asked.base == name and set(given.only) <= set(str(asked).split()):
                    results.append(measure(Path(scratch) / f"run-{number}", asked))
                    print(line(results[-1]), flush=True)
                    _write(given.results, results)


def _write(folder: Path, results: list[Result]) -> None:
    table = "\n".join([HEADER, *map(line, results)])
    (folder / "plan_gpu.md").write_text(table + "\n", encoding="utf-8")
    (folder / "plan_gpu.json").write_text(json.dumps([asdict(one) for one in results], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
