"""The data stage: read, split, render, check for leaks, and account for every row."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from evaluation.files import sha256_of_json, staged_folder, write_jsonl, write_model, write_text
from evaluation.model import load_tokenizer
from evaluation.overlap import TrainPair, find_overlaps, prompt_text
from evaluation.rendering import IGNORE, Example, Renderer
from evaluation.task import Sample, Task
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.example_files import write_examples
from finetune.prepare_examples import Rendered, refuse_too_long, render_rows
from finetune.prepare_rows import (
    Parts,
    ReadSource,
    UsableRow,
    account,
    assign,
    group_columns,
    held_out_source,
    read_source,
)
from finetune.recipe import Recipe
from finetune.recipe_data import Data
from finetune.records import Audit, Duplicate, SetAside, TokenSpan, TokenStatistics
from finetune.run_directory import HELD_OUT_TASK, RunDirectory

MASK_PREVIEWS = 5
"""Training examples that the audit shows token by token."""


@dataclass(frozen=True)
class Prepared:
    """Everything that the data stage found, before it is written."""

    train: Rendered
    validation: Rendered | None
    held_out: Rendered
    sources: tuple[ReadSource, ...]

    @property
    def rendered(self) -> tuple[Rendered, ...]:
        """The parts that there are."""
        return (self.train, self.held_out, *([self.validation] if self.validation else []))


def prepare(recipe: Recipe, run: RunDirectory, base_folder: Path, cache: Path, reporter: Reporter) -> Audit:
    """Prepare the data of a run and write data/.

    Raises:
        DataError: rows that the recipe does not allow, or none at all.
    """
    renderer = Renderer(load_tokenizer(base_folder))
    prepared = prepare_rows(recipe, renderer, cache, reporter)
    audit = _audit(prepared, renderer)
    with staged_folder(run.data) as folder:
        write_examples(folder / "train.arrow", prepared.train.examples)
        write_jsonl(folder / "train.jsonl", [_sample(row) for row in prepared.train.rows])
        if prepared.validation is not None:
            write_examples(folder / "validation.arrow", prepared.validation.examples)
        write_jsonl(folder / "held_out.jsonl", [_sample(row) for row in prepared.held_out.rows])
        _write_task(folder / "held_out.task.yaml", build_task(recipe, prepared, renderer))
        write_jsonl(folder / "set_aside.jsonl", all_set_aside(prepared))
        write_model(folder / "audit.json", audit)
    reporter.say(
        f"  {audit.train.examples} training, {audit.validation.examples if audit.validation else 0} validation,"
        f" {audit.held_out_samples} held-out rows; {sum(audit.set_aside_by_reason.values())} set aside;"
        f" {len(audit.duplicates)} held-out rows also stand in training"
    )
    return audit


def prepare_rows(recipe: Recipe, renderer: Renderer, cache: Path, reporter: Reporter) -> Prepared:
    """Read every source, assign rows to purposes, and render them."""
    data, by = recipe.data, group_columns(recipe.data)
    sources = [read_source(source, by, cache, reporter.say) for source in data.train]
    own = held_out_source(data)
    held_out = read_source(own, None, cache, reporter.say) if own else None
    parts = assign(data, sources, held_out, recipe.seed)
    total = len(parts.train) + len(parts.validation) + len(parts.held_out)
    with reporter.bar("render and tokenize", total) as advance:
        prepared = Prepared(
            train=render_rows(parts.train, data, renderer, advance),
            validation=render_rows(parts.validation, data, renderer, advance) if data.validation else None,
            held_out=render_rows(parts.held_out, _scored_like(data), renderer, advance),
            sources=(*sources, *([held_out] if held_out else [])),
        )
    refuse_too_long(data, prepared.rendered)
    if not all(part.rows for part in prepared.rendered):
        raise DataError("no rows are left after rendering", where="data", hint=_most_common_reason(prepared))
    return prepared


def build_task(recipe: Recipe, prepared: Prepared, renderer: Renderer) -> Task:
    """Make the held-out rows a task: a choice where every row is a classification, else free text."""
    rows = prepared.held_out.rows
    labels = _labels(prepared)
    plain_text = all(len(row.conversation.messages) == 1 for row in rows)
    lengths = [len(renderer.answer(row.conversation.prompt(), row.conversation.answer())) for row in rows]
    return Task(
        version=1,
        name=HELD_OUT_TASK,
        description=f"held-out rows of {recipe.name}",
        kind="choose" if labels else "token_loss" if plain_text else "generate",
        samples="held_out.jsonl",
        options=tuple(sorted(labels)) if labels else (),
        max_new_tokens=recipe.evaluation.max_new_tokens or int(max(lengths) * 1.5) + 1,
    )


def all_set_aside(prepared: Prepared) -> list[SetAside]:
    """List every row that is not used, with its reason."""
    unread = [row for read in prepared.sources for row in read.set_aside]
    return unread + [row for part in prepared.rendered for row in part.set_aside]


def spans_of(example: Example, renderer: Renderer) -> tuple[TokenSpan, ...]:
    """Cut an example into runs of tokens that are trained on and runs that are not, as text."""
    spans: list[TokenSpan] = []
    start = 0
    ids, trained = example.input_ids, [label != IGNORE for label in example.labels]
    for end in range(1, len(ids) + 1):
        if end == len(ids) or trained[end] != trained[start]:
            spans.append(TokenSpan(text=renderer.text(ids[start:end]), trained=trained[start]))
            start = end
    return tuple(spans)


def tokenizer_hash(renderer: Renderer) -> str:
    """Hash the vocabulary."""
    return sha256_of_json([f"{i} {token}" for token, i in sorted(renderer.tokenizer.get_vocab().items())])


def template_hash(renderer: Renderer) -> str:
    """Hash the chat template."""
    return sha256_of_json(str(renderer.tokenizer.chat_template or ""))


def _most_common_reason(prepared: Prepared) -> str:
    """Say why most rows were set aside, with one of them."""
    set_aside = all_set_aside(prepared)
    if not set_aside:
        return ""
    [(reason, count)] = Counter(row.reason for row in set_aside).most_common(1)
    first = next(row for row in set_aside if row.reason == reason)
    return f"{count} rows were set aside as {reason}; {first.file}:{first.line}: {first.detail}"


def _scored_like(data: Data) -> Data:
    """Held-out rows are scored on their last answer, whatever is trained on."""
    return data.model_copy(update={"train_on": "final_assistant"})


def _audit(prepared: Prepared, renderer: Renderer) -> Audit:
    set_aside = all_set_aside(prepared)
    labels = _labels(prepared)
    accounted = Parts(
        prepared.train.rows, prepared.validation.rows if prepared.validation else [], prepared.held_out.rows
    )
    return Audit(
        sources=tuple(account(read, accounted, set_aside) for read in prepared.sources),
        set_aside_by_reason=dict(Counter(row.reason for row in set_aside).most_common()),
        train=_statistics(prepared.train.examples),
        validation=_statistics(prepared.validation.examples) if prepared.validation else None,
        held_out_samples=len(prepared.held_out.rows),
        truncated=sum(part.truncated for part in prepared.rendered),
        duplicates=_duplicates(prepared, compare_answers=labels is None),
        labels=dict(Counter(row.conversation.answer() for row in prepared.train.rows).most_common())
        if labels
        else None,
        mask_preview=tuple(spans_of(example, renderer) for example in prepared.train.examples[:MASK_PREVIEWS]),
        tokenizer_sha256=tokenizer_hash(renderer),
        template_sha256=template_hash(renderer),
    )


def _labels(prepared: Prepared) -> set[str] | None:
    """Return the labels of a classification; none where any row is something else."""
    rows = [row for part in prepared.rendered for row in part.rows]
    if not all(row.template.label_column for row in rows):
        return None
    return {row.conversation.answer() for row in rows}


def _statistics(examples: Sequence[Example]) -> TokenStatistics:
    lengths = sorted(len(example.input_ids) for example in examples)
    return TokenStatistics(
        examples=len(examples),
        tokens=sum(lengths),
        trained_tokens=sum(example.trained_tokens for example in examples),
        shortest=lengths[0],
        median=int(statistics.median(lengths)),
        percentile_95=lengths[int(0.95 * (len(lengths) - 1))],
        longest=lengths[-1],
    )


def _duplicates(prepared: Prepared, *, compare_answers: bool) -> tuple[Duplicate, ...]:
    pairs = (
        TrainPair(row.id, prompt_text(row.conversation.prompt()), row.conversation.answer())
        for row in prepared.train.rows
    )
    samples = [_sample(row) for row in prepared.held_out.rows]
    found = find_overlaps(pairs, samples, compare_answers=compare_answers)
    return tuple(Duplicate(held_out=o.held_out, train=o.train, kind=o.kind, part=o.part) for o in found)


def _sample(row: UsableRow) -> Sample:
    return Sample(id=row.id, prompt=row.conversation.prompt(), reference=row.conversation.answer(), group=row.group)


def _write_task(path: Path, task: Task) -> None:

    write_text(path, yaml.safe_dump(task.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
