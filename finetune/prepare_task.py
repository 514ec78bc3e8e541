"""The held-out rows as a task: a choice where every row is a classification, else free text or its loss alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from evaluation.files import write_jsonl, write_text
from evaluation.rendering import Renderer
from evaluation.task import Sample, Task
from finetune.recipe import Recipe
from finetune.run_directory import HELD_OUT_TASK


def write_task(
    folder: Path, recipe: Recipe, samples: Sequence[Sample], labels: Iterable[str], renderer: Renderer
) -> None:
    """Write the held-out samples and the task that they are."""
    write_jsonl(folder / "held_out.jsonl", samples)
    task = build_task(recipe, samples, labels, renderer)
    text = yaml.safe_dump(task.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(folder / "held_out.task.yaml", text)


def build_task(recipe: Recipe, samples: Sequence[Sample], labels: Iterable[str], renderer: Renderer) -> Task:
    """Make the held-out rows a task; `labels` are those of a classification, none where any row is something else."""
    options = tuple(sorted(set(labels)))
    plain_text = all(not sample.prompt.messages for sample in samples)
    lengths = [len(renderer.answer(sample.prompt, sample.reference)) for sample in samples]
    return Task(
        version=1,
        name=HELD_OUT_TASK,
        description=f"held-out rows of {recipe.name}",
        kind="choose" if options else "token_loss" if plain_text else "generate",
        samples="held_out.jsonl",
        options=options,
        max_new_tokens=recipe.evaluation.max_new_tokens or int(max(lengths) * 1.5) + 1,
    )
