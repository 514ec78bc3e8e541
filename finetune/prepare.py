"""The data stage: read, split, look for leaks, render, audit, and account for every row.

No step holds all rows: they are numbers while they are assigned, and go from disk to disk while they are rendered.
"""

from __future__ import annotations

import functools
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from evaluation.conversation import Conversation
from evaluation.files import staged_folder
from evaluation.rendering import Example
from evaluation.template_laws import check_template
from finetune.audit_records import Audit
from finetune.audit_table import audit_table
from finetune.console import Reporter
from finetune.errors import DataError
from finetune.example_files import TRAIN_ROWS, write_examples
from finetune.prepare_audit import build_audit
from finetune.prepare_chunks import Rendering, render_chunks, renderer_hash
from finetune.prepare_examples import load_renderer, scored_settings, train_settings, validation_settings
from finetune.prepare_found import Prepared
from finetune.prepare_leaks import find_leaks
from finetune.prepare_limits import refuse_beyond_limits
from finetune.prepare_part import Keep, Part, refuse_too_long, sample_of
from finetune.prepare_parts import Numbers, assign, weigh
from finetune.prepare_sources import collect
from finetune.prepare_task import write_task
from finetune.recipe import Recipe
from finetune.row_store import StoredRow
from finetune.run_directory import RunDirectory
from finetune.workers import count_workers

LARGE_PART_ROWS = 20_000
"""From this many rows on, starting more processes costs less than it saves."""


def prepare(recipe: Recipe, run: RunDirectory, base_folder: Path, cache: Path, reporter: Reporter) -> Audit:
    """Prepare the data of a run and write data/; where it is refused, the account of the rows goes to refused/.

    Raises:
        DataError: rows that the recipe does not allow, or none at all.
    """
    began = time.perf_counter()
    renderer = load_renderer(base_folder)
    table = collect(recipe, cache, reporter)
    if any(source.template.kind != "plain" for source in table.sources):
        check_template(renderer)
    assigned = assign(recipe.data, table, recipe.seed)
    leaks = find_leaks(recipe, table, assigned, reporter)
    prepared = Prepared(table, weigh(recipe.data, table, leaks.without(assigned), recipe.seed), leaks)
    rendering = Rendering(base_folder, train_settings(recipe), renderer_hash(renderer), cache)
    with staged_folder(run.data) as folder, run.refusing(prepared.write_account):
        _render_parts(prepared, recipe, rendering, folder, reporter)
        refuse_too_long(recipe.data, [part for part, _ in prepared.purposes])
        _refuse_nothing_left(recipe, prepared)
        prepared.seconds = time.perf_counter() - began
        prepared.audit = audit = build_audit(recipe, prepared, renderer)
        reporter.show(audit_table(audit))
        refuse_beyond_limits(recipe.data, audit)
        write_task(folder, recipe, prepared.samples, prepared.classes(), renderer)
        prepared.write_account(folder)
    return audit


def _render_parts(prepared: Prepared, recipe: Recipe, rendering: Rendering, folder: Path, reporter: Reporter) -> None:
    """Render every part, a chunk at a time, and write its examples; held-out rows become samples."""
    parts = prepared.parts
    total = sum(len(numbers) for _, numbers in prepared.purposes)
    training = replace(rendering, workers=count_workers() if total >= LARGE_PART_ROWS else 1)
    scored = replace(training, settings=scored_settings(recipe))
    with reporter.bar("render and tokenize", total) as advance:

        def examples(part: Part, numbers: Numbers, how: Rendering, keep: Keep) -> Iterator[Example]:
            chunks = render_chunks(how, prepared.table.rows(numbers.tolist()), advance)
            return part.examples(chunks, numbers, keep)

        rows, sources = folder / "train.jsonl", folder / TRAIN_ROWS
        with rows.open("w", encoding="utf-8") as samples, sources.open("w", encoding="utf-8") as names:
            keep = functools.partial(_keep_train, prepared, samples, names)
            write_examples(folder / "train.arrow", examples(prepared.train, parts.train, training, keep))
        if recipe.data.validation is not None:
            unaltered = replace(training, settings=validation_settings(recipe))
            kept = examples(prepared.validation, parts.validation, unaltered, prepared.keep_answer)
            write_examples(folder / "validation.arrow", kept)
        # What is scored is rendered again from its sample: only the account of these examples is wanted.
        deque(examples(prepared.held_out, parts.held_out, scored, prepared.keep_sample), maxlen=0)


def _keep_train(
    prepared: Prepared, samples: TextIO, names: TextIO, row: StoredRow, conversation: Conversation, examples: int
) -> None:
    samples.write(sample_of(row, conversation).model_dump_json() + "\n")
    names.write(f"{row.id}\n" * examples)
    prepared.observed.see(row, conversation)


def _refuse_nothing_left(recipe: Recipe, prepared: Prepared) -> None:
    wanted = [prepared.train, prepared.held_out, *([prepared.validation] if recipe.data.validation else [])]
    if all(part.rows for part in wanted):
        return
    reasons = Counter(row.reason for row in prepared.set_aside()).most_common(1)
    hint = ""
    if reasons:
        [(reason, count)] = reasons
        first = next(row for row in prepared.set_aside() if row.reason == reason)
        hint = f"{count} rows were set aside as {reason}; {first.file}:{first.line}: {first.detail}"
    raise DataError("no rows are left after rendering", where="data", hint=hint)
