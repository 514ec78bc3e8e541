"""Reads a file the way a run would, with a guess: how many rows can be used, how long they are, what repeats."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from evaluation.conversation import Conversation
from evaluation.overlap import prompt_text
from finetune.initialize_guess import Guess
from finetune.prepare_rows import split_key
from finetune.recipe_data import Source
from finetune.row_templates import RowUnusable, to_conversation
from finetune.rows import BadRow, Row, read_rows

ROWS_LOOKED_AT = 2000
"""Rows from which template and columns are guessed."""
ROWS_COUNTED = 20_000
"""Rows that are read to the end of a file for counts and lengths; a few seconds."""

# Tokens a character, seen from above: LLaMA's vocabularies take 0.2 to 0.3 for English, SmolLM2's 1.76 for Chinese.
ASCII_TOKENS = 0.3
DIGIT_TOKENS = 1.0
LATIN_TOKENS = 0.9
OTHER_TOKENS = 1.8
TURN_TOKENS = 8
"""Tokens that a chat template puts around a message."""
TEMPLATE_TOKENS = 24
"""A system message that some templates add of their own."""


@dataclass
class Survey:
    """What was found in the rows of one file."""

    rows: int = 0
    complete: bool = True
    """Whether the file ends where reading ended."""
    unusable: Counter[str] = field(default_factory=Counter)
    """Reason code → rows that no conversation can be made of."""
    example_of: dict[str, str] = field(default_factory=dict)
    """Reason code → where the first such row is, and what exactly."""
    tokens: list[int] = field(default_factory=list)
    """Estimated tokens of every usable row, in order."""
    answers: Counter[str] = field(default_factory=Counter)
    """The last messages."""
    prompts: set[str] = field(default_factory=set)
    groups: list[str] = field(default_factory=list)
    """What each usable row is split by."""
    with_tools: int = 0
    """Rows in which functions are listed or called."""
    first: Conversation | None = None

    @property
    def usable(self) -> int:
        """Count the rows that a run can use."""
        return len(self.tokens)

    @property
    def counted(self) -> str:
        """Say how many rows there are."""
        return f"{self.rows:,}" if self.complete else f"more than {self.rows:,}"


def read_first_rows(file: Path) -> tuple[list[Row], list[BadRow]]:
    """Read the first rows of a file, those that can be read and those that cannot.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    found = list(islice(read_rows(_source(file), file), ROWS_LOOKED_AT))
    return [row for row in found if isinstance(row, Row)], [row for row in found if isinstance(row, BadRow)]


def survey_file(file: Path, guess: Guess, group: str | None) -> Survey:
    """Read up to ROWS_COUNTED rows of a file with a guess; rows without a value of `group` are unusable.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    survey = Survey()
    rows = read_rows(_source(file), file)
    for row in islice(rows, ROWS_COUNTED):
        survey.rows += 1
        try:
            if isinstance(row, BadRow):
                raise RowUnusable(row.reason, row.detail)
            _count_row(survey, row, guess, group)
        except RowUnusable as unusable:
            survey.unusable[unusable.reason] += 1
            survey.example_of.setdefault(unusable.reason, f"line {row.line}: {unusable.detail}")
    survey.complete = next(rows, None) is None
    return survey


def tokens_of(text: str) -> int:
    """Estimate the tokens of a text from its characters, rather too many than too few."""
    latin = len(text.encode("latin-1", "ignore"))
    plain = text.encode("ascii", "ignore")
    digits = sum(plain.count(digit) for digit in b"0123456789")
    return math.ceil(
        (len(plain) - digits) * ASCII_TOKENS
        + digits * DIGIT_TOKENS
        + (latin - len(plain)) * LATIN_TOKENS
        + (len(text) - latin) * OTHER_TOKENS
    )


def share_of(values: Sequence[int], share: float) -> int:
    """Return the value that this share of them does not exceed; 0 where there are none."""
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)] if values else 0


def _count_row(survey: Survey, row: Row, guess: Guess, group: str | None) -> None:
    conversation = to_conversation(guess.template, row.values, guess.renamed())
    key = None if group is None else row.values.get(group)
    if group is not None and (key is None or key == ""):
        raise RowUnusable("no_group", f"column {group!r} is empty")
    tools = tokens_of(json.dumps(conversation.tools)) if conversation.tools else 0
    survey.tokens.append(sum(_turn_tokens(conversation)) + tools + TEMPLATE_TOKENS)
    survey.answers[conversation.answer()] += 1
    survey.prompts.add(prompt_text(conversation.prompt()))
    survey.groups.append(split_key(conversation) if key is None else str(key))
    survey.with_tools += bool(conversation.tools) or any(message.tool_calls for message in conversation.messages)
    survey.first = survey.first or conversation


def _turn_tokens(conversation: Conversation) -> Iterator[int]:
    around = TURN_TOKENS if conversation.layout == "chat" else 1
    for message in conversation.messages:
        calls = "".join(call.model_dump_json() for call in message.tool_calls)
        yield tokens_of(message.content + calls) + around


def _source(file: Path) -> Source:
    # What `rows` says plays no part in reading.
    return Source(source=file.as_posix(), rows="text")
