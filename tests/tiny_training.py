"""A training job on the tiny model, made by hand: examples of random tokens, no rows and no pipeline."""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from rich.console import Console
from tiny_model import build_tokenizer

from evaluation.model import ModelSpec, load_base
from evaluation.rendering import IGNORE, Example
from finetune.adapter import build_adapter
from finetune.checkpoints import checkpoint_to_go_on_from
from finetune.console import Reporter
from finetune.example_files import write_examples
from finetune.recipe import Recipe
from finetune.signals import Interrupted
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


@dataclass
class StopAfter:
    """Asks for the end after so many steps."""

    steps: int

    def finish_first(self) -> None:
        """There is nothing else to wait for."""

    def asked(self) -> bool:
        """Count a step."""
        self.steps -= 1
        return self.steps == 0

    def end(self, what: str) -> NoReturn:
        """End."""
        raise Interrupted(15, what)


def stop_after(job: TrainingJob, steps: int) -> None:
    """Train a job from its checkpoint, or from the start, and have it stopped after so many more steps."""
    with pytest.raises(Interrupted, match="is saved"):
        train(job, silent(), StopAfter(steps))
    assert not job.run.adapter.exists()
    assert not job.run.training.exists()


def going_on(job: TrainingJob) -> TrainingJob:
    """Return the job as the same command would train it now."""
    folder = checkpoint_to_go_on_from(job.run, job.made_from, job.devices, lambda _: None)
    return job.model_copy(update={"checkpoint": folder})


@dataclass
class Reference:
    """What a bare loop over the examples of a job came to."""

    losses: list[float]
    weights: dict[str, torch.Tensor]


def bare_loop(base: Path, recipe: Recipe, groups: list[list[Example]], device: str = "cpu") -> Reference:
    """Train one example at a time, with all logits and the loss of a step as Σ nll / Σ tokens."""
    training = recipe.training
    model = build_adapter(load_base(ModelSpec(base, dtype="float32", device=device)), recipe.adapter, recipe.seed)
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=training.learning_rate, weight_decay=0.0)
    losses = []
    for group in groups:
        total = sum(example.trained_tokens for example in group)
        optimizer.zero_grad()
        summed = 0.0
        for example in group:
            logits = model(input_ids=torch.tensor([example.input_ids], device=device)).logits[0, :-1]
            labels = torch.tensor(example.labels[1:], device=device)
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORE) / total
            loss.backward()
            summed += loss.item()
        losses.append(summed)
        torch.nn.utils.clip_grad_norm_(trainable, training.max_grad_norm)
        optimizer.step()
    named = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
    return Reference(losses, {name.replace(".default", ""): tensor for name, tensor in named.items()})
