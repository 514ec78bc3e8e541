"""A training job on the tiny model, made by hand: examples of random tokens, no rows and no pipeline."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

from rich.console import Console
from tiny_model import build_tokenizer

from evaluation.rendering import IGNORE, Example
from finetune.console import Reporter
from finetune.example_files import write_examples
from finetune.recipe import Recipe
from finetune.training import train
from finetune.training_job import TrainingJob


def tiny_examples(count: int, seed: int = 0) -> list[Example]:
    """Make examples of 8 to 24 tokens; the answer is the prompt's own words again, so that there is much to learn."""
    draw = random.Random(seed)
    most = len(build_tokenizer())
    examples = []
    for _ in range(count):
        prompt = [draw.randrange(4, most) for _ in range(draw.randrange(4, 16))]
        answer = [prompt[0]] * draw.randrange(3, 8) + [2]
        examples.append(Example((*prompt, *answer), (*[IGNORE] * len(prompt), *answer)))
    return examples


def tiny_recipe(base_folder: Path, /, **sections: object) -> Recipe:
    """Build a recipe with few, quick steps on an fp32 base; a section given replaces the one here key by key."""
    document: dict[str, object] = {
        "version": 1,
        "name": "tiny",
        "seed": 7,
        "base": {"model": str(base_folder), "dtype": "float32"},
        "adapter": {"kind": "lora", "rank": 4, "alpha": 8},
        "data": {
            "train": [{"source": "rows.jsonl", "rows": "messages"}],
            "held_out": {"fraction": 0.1},
        },
        "training": {"tokens_per_step": 160, "learning_rate": 1e-2, "warmup_fraction": 0.1},
    }
    for name, section in sections.items():
        old = document.get(name)
        document[name] = {**old, **section} if isinstance(old, dict) and isinstance(section, dict) else section
    return Recipe.model_validate_json(json.dumps(document))


def tiny_job(
    folder: Path, recipe: Recipe, examples: list[Example], validation: list[Example] | None = None, devices: int = 1
) -> TrainingJob:
    """Write the examples of a job into a new run folder."""
    data = folder / "data"
    data.mkdir(parents=True)
    write_examples(data / "train.arrow", examples)
    if validation:
        write_examples(data / "validation.arrow", validation)
    return TrainingJob(
        recipe=recipe,
        run_folder=folder,
        base_folder=Path(recipe.base.model),
        base_name="tiny-base",
        base_revision=None,
        devices=devices,
    )


def silent() -> Reporter:
    """Build a reporter that nobody reads."""
    return Reporter(Console(file=io.StringIO()))


def trained(
    folder: Path, recipe: Recipe, examples: list[Example], validation: list[Example] | None = None
) -> TrainingJob:
    """Train a job of this recipe and return it."""
    job = tiny_job(folder, recipe, examples, validation)
    train(job, silent())
    return job
