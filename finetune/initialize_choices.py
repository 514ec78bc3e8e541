"""Chooses what a recipe says beside its columns: the file with the test rows, splits, lengths, training."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import DataError
from finetune.initialize_columns import MOSTLY, ColumnFacts
from finetune.initialize_guess import Guess
from finetune.initialize_names import is_group, plain_name
from finetune.initialize_survey import Survey, share_of, survey_file, tokens_of
from finetune.splits import split_by_fraction

TEST_WORDS = ("test", "heldout", "held_out", "held-out", "eval", "dev", "valid", "validation", "val")
"""What stands for `train` in the name of a file with rows to score; the first that is there is taken."""
FRACTIONS = (0.1, 0.2, 0.3, 0.4)
LEAST_GROUPS = 20
"""Fewer groups than these fall too unevenly on the sides of a split."""
LEAST_SCORED = 3
"""Rows on the smaller side of a split that is worth making."""
SMALL_FILE = 1000
"""Rows below which one pass over them teaches little."""
SHORTEST, LONGEST = 128, 2048
"""`max_tokens` that are chosen: the longest is what the embedded base was trained with."""
MARGIN = 1.5
"""Tokenizers differ: lengths that are estimated from characters are allowed half as much again."""
LONGEST_ANSWER = 256
"""Tokens of an answer that a first try on a CPU generates at most."""
LEAST_ANSWER = 16
"""Characters of an answer whose repetition says something."""


@dataclass(frozen=True)
class TestFile:
    """A file of held-out rows beside the one that is trained on."""

    path: Path
    survey: Survey
    shared_prompts: int
    """Prompts that stand in both files, of the rows that were read."""
    shared_answers: int
    """Test rows whose answer stands in the other file; 0 for classes, which are bound to."""


@dataclass(frozen=True)
class Fractions:
    """Shares of the rows that are kept out of training; 0 where none are, or where they have a file of their own."""

    held_out: float
    validation: float


@dataclass(frozen=True)
class Lengths:
    """How long examples may be, by an estimate."""

    max_tokens: int
    longest: int
    """Tokens of the longest row that was read."""
    beyond: int
    """Rows that were read and are longer than `max_tokens`."""
    answer: int
    """Tokens that nine of ten answers keep to."""


def choose_group(facts: Sequence[ColumnFacts], guess: Guess) -> ColumnFacts | None:
    """Return the column that splits are made by, if one has the name of a group and its values repeat."""
    used = set(guess.columns.values())
    candidates = [
        fact
        for fact in facts
        if fact.name not in used
        and is_group(fact.name)
        and fact.is_mostly("text", "integer")
        and fact.filled >= MOSTLY * fact.rows
        and fact.distinct >= LEAST_GROUPS
    ]
    # A column of that very name was made for it, even if each of the first rows has its own.
    named = [fact for fact in candidates if plain_name(fact.name) in ("group", "groupid", "gruppe", "groupe", "grupo")]
    repeated = [fact for fact in candidates if fact.distinct < fact.filled]
    return next(iter([*named, *repeated]), None)


def find_test_file(file: Path, guess: Guess, train: Survey) -> TestFile | None:
    """Return the file beside this one that is called `test` where it is called `train`, if its rows can be used."""
    for word in TEST_WORDS:
        for name in _names_with(file.name, word):
            path = file.with_name(name)
            if path.is_file() and (survey := _usable_survey(path, guess)) is not None:
                answers = 0 if guess.template.label_column else _shared_answers(survey, train)
                return TestFile(path, survey, len(survey.prompts & train.prompts), answers)
    return None


def choose_fractions(groups: Sequence[str], *, own_test_file: bool, where: str) -> Fractions:
    """Return the smallest shares that leave rows on every side, tried with the very split that a run makes.

    Raises:
        DataError: there are too few rows or groups to hold any out.
    """
    rest, held_out = set(range(len(groups))), 0.0
    if not own_test_file:
        held_out = _share_that_holds(groups, rest, "held_out")
        if not held_out:
            kinds = f"{len(groups)} usable rows with {len(set(groups))} different questions or groups"
            what = f"{kinds} are too few to train on some and score the others"
            raise DataError(what, where=where, hint=f"give at least {5 * LEAST_SCORED} that differ")
        rest -= split_by_fraction(groups, held_out, "held_out")
    return Fractions(held_out, _share_that_holds(groups, rest, "validation"))


def choose_lengths(survey: Survey) -> Lengths:
    """Round up the length that nearly all rows keep to, with a margin for the estimate."""
    usual = _rounded_up(share_of(survey.tokens, 0.99))
    chosen = min(LONGEST, max(SHORTEST, usual))
    beyond = sum(tokens > chosen for tokens in survey.tokens)
    answers = [tokens_of(answer) for answer in survey.answers.elements()]
    return Lengths(chosen, max(survey.tokens), beyond, min(LONGEST_ANSWER, _rounded_up(share_of(answers, 0.9))))


def _rounded_up(tokens: int) -> int:
    return math.ceil(tokens * MARGIN / 64) * 64


def _names_with(name: str, word: str) -> list[str]:
    """Put another word in the place of `train`, in the same capitals: `Train-01.csv` and `Test-01.csv`."""
    found = []
    for match in re.finditer(r"(?i)(?<![a-z])train(?:ing)?(?![a-z])", name):
        old = match[0]
        new = word.upper() if old.isupper() else word.capitalize() if old[0].isupper() else word
        found.append(name[: match.start()] + new + name[match.end() :])
    return found


def _shared_answers(test: Survey, train: Survey) -> int:
    long = (answer for answer in test.answers if len(answer) >= LEAST_ANSWER)
    return sum(test.answers[answer] for answer in long if answer in train.answers)


def _usable_survey(path: Path, guess: Guess) -> Survey | None:
    try:
        survey = survey_file(path, guess, None)
    except DataError:
        # Not a file of rows: whatever it is, it is not what these are scored on.
        return None
    return survey if survey.usable >= max(1, MOSTLY * survey.rows) else None


def _share_that_holds(groups: Sequence[str], rest: set[int], salt: str) -> float:
    for fraction in FRACTIONS:
        inside = split_by_fraction(groups, fraction, salt) & rest
        if len(inside) >= LEAST_SCORED and len(rest) - len(inside) >= 2 * LEAST_SCORED:
            return fraction
    return 0.0
