"""What is seen of the training rows while they go by: who speaks, in which languages, which labels, what repeats."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from evaluation.conversation import Conversation
from evaluation.near_duplicates import DuplicateFinder
from finetune.audit_records import Repetition
from finetune.languages import languages_of
from finetune.row_store import StoredRow

SAMPLED_ROWS = 1000
"""Most rows whose language is guessed, spread evenly; a guess takes milliseconds."""
SAMPLED_CHARACTERS = 500
"""Of the text of each."""


@dataclass
class Observed:
    """Counts over the training rows; one that stands more than once is looked at once for what it repeats."""

    is_classification: bool
    expected_rows: int
    may_repeat: bool
    """Whether a row may come more than once, because sources are mixed or classes evened out."""
    rows: int = 0
    turns: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    texts: list[str] = field(default_factory=list)
    compared: set[str] = field(default_factory=set)
    """Rows that were looked at for what they repeat."""
    finder: DuplicateFinder = field(default_factory=DuplicateFinder)

    def see(self, row: StoredRow, conversation: Conversation) -> None:
        """Take the next training row."""
        self.turns.update(message.role for message in conversation.messages)
        if self.is_classification:
            self.labels[conversation.answer()] += 1
        if self.rows % max(1, math.ceil(self.expected_rows / SAMPLED_ROWS)) == 0:
            self.texts.append(spoken_text(conversation)[:SAMPLED_CHARACTERS])
        self.rows += 1
        if row.id not in self.compared:
            self.finder.see(row.id, "\n".join(message.content for message in conversation.messages))
        if self.may_repeat:
            self.compared.add(row.id)

    def languages(self) -> dict[str, int]:
        """Guess the language of the sampled rows: language → rows, most frequent first."""
        return dict(languages_of(self.texts).most_common())

    def repetition(self) -> Repetition:
        """Sum up which rows repeat an earlier one."""
        found = self.finder.found()
        return Repetition(
            rows=found.rows,
            exact=found.exact,
            near=found.near,
            examples=tuple((repeat.name, repeat.earlier) for repeat in found.listed),
        )


def spoken_text(conversation: Conversation) -> str:
    """Return what a language is guessed from: the messages without the system's, which may be ours in any language."""
    return "\n".join(message.content for message in conversation.messages if message.role != "system")
