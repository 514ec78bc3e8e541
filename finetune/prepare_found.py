"""Everything that the data stage found, before it is written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from evaluation.conversation import Conversation
from evaluation.files import write_jsonl, write_model
from evaluation.task import Sample
from finetune.audit_records import Audit, SetAside
from finetune.prepare_leaks import Leaks
from finetune.prepare_observed import Observed
from finetune.prepare_part import Part, sample_of
from finetune.prepare_parts import Numbers, Parts, RowTable
from finetune.row_store import StoredRow


@dataclass
class Prepared:
    """Everything that the data stage found."""

    table: RowTable
    parts: Parts
    leaks: Leaks
    train: Part = field(default_factory=lambda: Part(checks=True))
    validation: Part = field(default_factory=Part)
    held_out: Part = field(default_factory=Part)
    samples: list[Sample] = field(default_factory=list)
    """The held-out rows as they are scored."""
    observed: Observed = field(init=False)
    answers: set[str] = field(default_factory=set)
    """Those of the validation rows."""
    seconds: float = 0.0
    """That reading and rendering took."""
    audit: Audit | None = None
    """None until every row is accounted for."""

    def __post_init__(self) -> None:
        """Begin to observe the training rows."""
        train = self.parts.train
        self.observed = Observed(self.is_classification, len(train), may_repeat=len(np.unique(train)) < len(train))

    @property
    def purposes(self) -> tuple[tuple[Part, Numbers], ...]:
        """Each purpose's account with the rows that were assigned to it."""
        return (
            (self.train, self.parts.train),
            (self.validation, self.parts.validation),
            (self.held_out, self.parts.held_out),
        )

    def set_aside(self) -> Iterator[SetAside]:
        """List every row that is not used, with its reason."""
        yield from itertools.chain.from_iterable(read.set_aside for read in self.table.sources)
        yield from self.leaks.set_aside.values()
        yield from itertools.chain.from_iterable(part.set_aside.values() for part, _ in self.purposes)

    def write_account(self, folder: Path) -> None:
        """Write set_aside.jsonl, shortened.jsonl with every row that is not trained on as it was, and audit.json."""
        write_jsonl(folder / "set_aside.jsonl", self.set_aside())
        write_jsonl(folder / "shortened.jsonl", (row for part, _ in self.purposes for row in part.changed))
        if self.audit is not None:
            write_model(folder / "audit.json", self.audit)

    def keep_answer(self, _: StoredRow, conversation: Conversation, _examples: int) -> None:
        """Take a validation row: its class may be one that no other part has."""
        if self.is_classification:
            self.answers.add(conversation.answer())

    def keep_sample(self, row: StoredRow, conversation: Conversation, _examples: int) -> None:
        """Take a held-out row."""
        self.samples.append(sample_of(row, conversation))

    @property
    def is_classification(self) -> bool:
        """Whether every row has a class."""
        return all(read.template.label_column for read in self.table.sources)

    def classes(self) -> set[str]:
        """Return every class that a row has; none where any row is something else than a classification."""
        if not self.is_classification:
            return set()
        return self.answers | set(self.observed.labels) | {sample.reference for sample in self.samples}

    @property
    def rows(self) -> int:
        """Count the rows of all sources."""
        return sum(len(read.rows) + len(read.set_aside) for read in self.table.sources)

    def used(self) -> Parts:
        """Return the rows that became examples, each once."""
        train, validation, held_out = (
            np.setdiff1d(numbers, np.fromiter(part.set_aside, np.int64)) for part, numbers in self.purposes
        )
        return Parts(train, validation, held_out, self.parts.left_over)

    def set_aside_numbers(self) -> Numbers:
        """Return the numbers of the rows that were set aside after they were read."""
        later = itertools.chain(self.leaks.set_aside, *(part.set_aside for part, _ in self.purposes))
        return np.unique(np.fromiter(later, np.int64))
