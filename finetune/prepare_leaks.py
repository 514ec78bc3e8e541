"""Looks for samples that are scored among the rows that are trained on, and sets those rows aside where asked to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.overlap import Leak, LeakIndex, prompt_text
from evaluation.task import Sample
from evaluation.task_file import load_task
from finetune.audit_records import LEAKS, LeakCount, LeakedSample, SetAside
from finetune.console import Reporter
from finetune.prepare_part import sample_of
from finetune.prepare_parts import Parts, RowTable
from finetune.recipe import Recipe
from finetune.row_store import StoredRow
from finetune.run_directory import HELD_OUT_TASK

LISTED_SAMPLES = 1000
"""Leaked samples that the audit names."""


@dataclass(frozen=True)
class Scored:
    """The samples of one task that the run will score."""

    name: str
    samples: Sequence[Sample]
    has_classes: bool
    """Whether each answer is one of a few, and so bound to occur among the training rows."""


@dataclass(frozen=True)
class Leaks:
    """What was found: counts by task, the samples, and the training rows that are set aside for it."""

    counts: tuple[LeakCount, ...]
    leaked: tuple[LeakedSample, ...]
    set_aside: dict[int, SetAside]
    """By the row's number; empty unless the recipe asks for it."""

    def without(self, parts: Parts) -> Parts:
        """Return the parts without the training rows that are set aside."""
        leaking = np.fromiter(self.set_aside, np.int64, len(self.set_aside))
        return replace(parts, train=parts.train[~np.isin(parts.train, leaking)])


def find_leaks(recipe: Recipe, table: RowTable, parts: Parts, reporter: Reporter) -> Leaks:
    """Compare every training row with every sample of every task that will be scored."""
    tasks = scored_tasks(recipe, table, parts)
    similarity = recipe.data.leakage.similarity
    indexes = [LeakIndex(task.samples, compare_answers=not task.has_classes, similarity=similarity) for task in tasks]
    with reporter.bar("look for leaks", len(parts.train)) as advance:
        numbers = parts.train.tolist()
        for number, row in zip(numbers, table.rows(numbers), strict=True):
            conversation = row.parsed()
            prompt, answer = prompt_text(conversation.prompt()), conversation.answer()
            for index in indexes:
                index.see(number, prompt, answer)
            advance(1)
        found = [index.found() for index in indexes]
    counts = tuple(_count(task, one.leaks) for task, one in zip(tasks, found, strict=True))
    named = [(task.name, leak) for task, one in zip(tasks, found, strict=True) for leak in one.leaks]
    aside: dict[int, SetAside] = {}
    if recipe.data.leakage.on_overlap == "set_aside":
        aside = _set_aside(sorted(set[int]().union(*(one.rows for one in found))), table)
    return Leaks(counts, _with_places(named[:LISTED_SAMPLES], table), aside)


def scored_tasks(recipe: Recipe, table: RowTable, parts: Parts) -> list[Scored]:
    """Return every task that the run will score, the held-out rows among them."""
    tasks = []
    for name in recipe.evaluation.tasks:
        if name == HELD_OUT_TASK:
            rows = table.rows(parts.held_out.tolist())
            samples = [sample_of(row, row.parsed()) for row in rows]
            tasks.append(Scored(name, samples, all(read.template.label_column for read in table.sources)))
        else:
            loaded = load_task(name)
            tasks.append(Scored(loaded.task.name, loaded.samples, loaded.task.kind == "choose"))
    return tasks


def _count(task: Scored, leaks: Iterable[Leak]) -> LeakCount:
    kinds = Counter(leak.kind for leak in leaks)
    return LeakCount(
        task=task.name,
        samples=len(task.samples),
        exact=kinds["exact"],
        normalized=kinds["normalized"],
        ngram=kinds["ngram"],
        near=kinds["near"],
    )


def _with_places(leaks: Sequence[tuple[str, Leak]], table: RowTable) -> tuple[LeakedSample, ...]:
    """Say of which task each leak is and where its training row stands."""
    rows = table.rows(leak.row for _, leak in leaks)
    return tuple(
        LeakedSample(task=task, sample=leak.sample, train=row.id, kind=leak.kind, part=leak.part)
        for (task, leak), row in zip(leaks, rows, strict=True)
    )


def _set_aside(numbers: Sequence[int], table: RowTable) -> dict[int, SetAside]:
    def aside(row: StoredRow) -> SetAside:
        return SetAside(file=row.file, line=row.line, reason=LEAKS, detail="stands among the samples that are scored")

    return {number: aside(row) for number, row in zip(numbers, table.rows(numbers), strict=True)}
