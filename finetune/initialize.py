"""`finetune init FILE`: looks at a user's rows, guesses template and columns, and writes a commented recipe."""

from __future__ import annotations

import functools
import re
import shlex
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from evaluation.conversation import Conversation
from evaluation.files import write_text
from evaluation.screen import PrintableConsole
from finetune.errors import DataError, Problem, RecipeError
from finetune.initialize_choices import choose_fractions, choose_group, choose_lengths, find_test_file
from finetune.initialize_columns import look_at_columns
from finetune.initialize_guess import guess_rows
from finetune.initialize_survey import read_first_rows, survey_file
from finetune.initialize_text import SMALL_BASE, Draft, named, recipe_text
from finetune.recipe_file import load_recipe
from finetune.row_templates import RowTemplate, list_row_templates, load_row_template

LONGEST_SHOWN = 200
"""Characters of a message of the first row."""
LARGEST_UNUSABLE = 0.1
"""Share of unusable rows that a run allows unless told otherwise."""


def init_recipe(
    file: Path, out: Path | None, base: str | None, name: str | None, force: bool, rows: str | None = None
) -> None:
    """Write a recipe for a file of rows and say what was guessed; `rows` names the row template to be used.

    Raises:
        DataError: the file cannot be read, nothing can be guessed, or there is a recipe already.
        RecipeError: the base or the name is one that recipes do not accept.
    """
    name = name or recipe_name(file)
    out = out or Path(f"{name}.yaml")
    if out.exists() and not force:
        raise DataError("there is a file already", where=str(out), hint="name another with --out, or add --force")
    draft = draft_recipe(file, base or SMALL_BASE, name, rows)
    text = recipe_text(draft)
    check_text(text, out)
    write_text(out, text)
    PrintableConsole(soft_wrap=True).print("\n".join(_said(draft, out)), markup=False, highlight=False)


def draft_recipe(file: Path, base: str, name: str, rows: str | None) -> Draft:
    """Look at a file of rows and choose what its recipe says.

    Raises:
        DataError: the file cannot be read, nothing can be guessed, or no row can be used.
    """
    if not file.is_file():
        what = "is not a file" if file.exists() else "there is no such file"
        raise DataError(what, where=str(file), hint="name a .csv, .tsv, .json, .jsonl or .parquet file")
    templates = (load_row_template(rows),) if rows else _bundled_templates()
    read, unreadable = read_first_rows(file)
    if not read:
        first = f"; line {unreadable[0].line}: {unreadable[0].detail}" if unreadable else ""
        raise DataError(f"no rows could be read{first}", where=str(file))
    facts = look_at_columns(read)
    try:
        guess = guess_rows(facts, templates)
    except DataError as error:
        raise DataError(error.what, where=str(file), hint=error.hint) from None
    group = choose_group(facts, guess)
    by = group.name if group else None
    survey = survey_file(file, guess, by)
    if not survey.usable:
        reason, count = survey.unusable.most_common(1)[0]
        what = f"none of {survey.rows:,} rows can be used as {guess.template.name}: {count:,} × {reason}"
        raise DataError(what, where=str(file), hint=survey.example_of[reason])
    test = find_test_file(file, guess, survey)
    fractions = choose_fractions(survey.groups, own_test_file=test is not None, where=str(file))
    lengths = choose_lengths(survey)
    return Draft(name, file, base, rows or guess.template.name, guess, survey, by, test, fractions, lengths)


def recipe_name(file: Path) -> str:
    """Make a run's name of a file's: `Bank Intents.train.csv.gz` is bank-intents."""
    stem = re.sub(r"(?i)\.(gz|jsonl|json|csv|tsv|parquet)\b", "", file.name)
    ascii_ = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_).strip("-")
    return (re.sub(r"(^|-)train(ing)?(-\d+-of-\d+)?$", "", words) or "my-rows")[:80]


def check_text(text: str, out: Path) -> None:
    """Load a recipe before it is written.

    Raises:
        RecipeError: it is not accepted; the problems speak of `out`.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft.yaml"
        draft.write_text(text, encoding="utf-8")
        try:
            load_recipe(str(draft))
        except RecipeError as error:
            mine = [Problem(p.where.replace(str(draft), str(out)), p.what, p.hint) for p in error.problems]
            raise RecipeError(mine) from None


@functools.cache
def _bundled_templates() -> tuple[RowTemplate, ...]:
    return tuple(load_row_template(name) for name in list_row_templates())


def _said(draft: Draft, out: Path) -> Iterator[str]:
    guess, survey = draft.guess, draft.survey
    yield f"{draft.file}: {survey.counted} rows, {survey.usable:,} of them usable"
    yield f"rows: {draft.rows}" + (f" (or {', '.join(guess.others)})" if guess.others else "")
    for name, own in guess.columns.items():
        yield f"  {name} ← {named(own)}: guessed from {guess.reasons[name]}"
    if draft.group is not None:
        yield f"  split by {named(draft.group)}"
    yield f"held out: {draft.test.path if draft.test else f'{draft.fractions.held_out:.0%} of the rows'}"
    if survey.rows - survey.usable > LARGEST_UNUSABLE * survey.rows:
        yield "  more rows than a run allows cannot be used (data.audit.maximum_set_aside):"
    for reason, count in survey.unusable.most_common(3):
        rows = "row" if count == 1 else "rows"
        yield f"  {count:,} {rows} cannot be used, {reason}: {survey.example_of[reason]}"
    yield from ("", "the first row:", *_shown(survey.first), "")
    yield f"wrote {out}; look at what it guessed, then:"
    for command in ("check", "prepare", "run"):
        yield f"  finetune {command} {_argument(out)}"


def _shown(conversation: Conversation | None) -> Iterator[str]:
    for message in conversation.messages if conversation else ():
        calls = "".join(f" [calls {call.name}]" for call in message.tool_calls)
        text = " ".join(message.content.split()) + calls
        shown = text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + " …"
        yield f"  {message.role}: {''.join(char if char.isprintable() else '?' for char in shown)}"


def _argument(out: Path) -> str:
    # Without a folder or an ending it would be taken for a shipped recipe.
    text = str(out) if out.suffix in (".yaml", ".yml") or out.name != str(out) else f"./{out}"
    return shlex.quote(text)
