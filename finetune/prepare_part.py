"""What became of the rows of one purpose: their examples go to the disk as they come, and everything is counted."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evaluation.conversation import Conversation
from evaluation.long_texts import joined
from evaluation.rendering import IGNORE, Example
from evaluation.task import Sample
from finetune.audit_records import Change, ChangedRow, SetAside, TokenStatistics
from finetune.errors import DataError
from finetune.prepare_chunks import Chunk
from finetune.prepare_examples import TOO_LONG, Outcome
from finetune.prepare_parts import Numbers
from finetune.recipe_data import Data
from finetune.row_store import StoredRow

Keep = Callable[[StoredRow, Conversation, int], None]
"""Takes a row that is used, its conversation, and of how many examples it is the source."""

NAMED_ROWS = 5
"""Rows that a refusal names."""
CHECKED_ROWS = 256
"""Training rows whose masks are computed in a second way at the start of every run."""
CHECKED_TOKENS = 1_000_000
"""Of so many tokens at most, so that rows of many pages do not fill the memory."""


@dataclass
class Part:
    """The account of one purpose's rows."""

    checks: bool = False
    """Whether some rows are kept to compute their masks a second time."""
    rows: int = 0
    """Rows that became examples."""
    tokens: array[int] = field(default_factory=lambda: array("i"))
    """Length of each example."""
    trained: array[int] = field(default_factory=lambda: array("i"))
    """Labelled tokens of each example."""
    set_aside: dict[int, SetAside] = field(default_factory=dict)
    """By the row's number: a row that stands more than once is set aside once."""
    too_long: dict[str, int] = field(default_factory=dict)
    """Rows that the recipe neither shortens nor splits, with their lengths."""
    over_max_tokens: int = 0
    changed: list[ChangedRow] = field(default_factory=list)
    """Rows that were shortened or split."""
    copies: Counter[str] = field(default_factory=Counter)
    """Kind of altered copy → how many are learned."""
    copies_left_out: Counter[str] = field(default_factory=Counter)
    """Reason → altered copies that are not learned."""
    chunks: int = 0
    chunks_from_cache: int = 0
    checked: list[tuple[str, Conversation, Example]] = field(default_factory=list)
    """Rows spread evenly, with the conversation that was rendered and the whole example."""
    _checked_tokens: int = 0

    def examples(self, chunks: Iterable[Chunk], numbers: Numbers, keep: Keep) -> Iterator[Example]:
        """Yield the examples of all chunks and count; `keep` is told each row that is used, before its examples.

        `numbers` are those of the rows that the chunks hold, in order.
        """
        every = max(1, len(numbers) // CHECKED_ROWS)
        for position, (row, outcomes) in enumerate(self._rows(chunks)):
            self._count(int(numbers[position]), row, outcomes)
            own = [outcome.example for outcome in outcomes if outcome.example and not outcome.copy]
            if not own:
                continue  # nor is a copy learned of a row that is not used
            conversation = Conversation.model_validate_json(outcomes[0].shortened or row.conversation)
            learned = [outcome.example for outcome in outcomes if outcome.example]
            keep(row, conversation, len(learned))
            if self.checks and position % every == 0:
                self._keep_for_checking(row.id, conversation, joined(own))
            yield from (self._counted(example) for example in learned)

    def count_changed(self, what: Change) -> int:
        """Count the rows that were shortened, or split."""
        return sum(row.what == what for row in self.changed)

    def lengths(self) -> NDArray[np.int32]:
        """Return the length of each example."""
        return np.frombuffer(self.tokens, np.int32)

    def statistics(self) -> TokenStatistics:
        """Return the lengths of the examples; there must be one."""
        lengths = np.sort(self.lengths())
        last = len(lengths) - 1
        at = {share: int(lengths[int(share * last)]) for share in (0.9, 0.95, 0.99)}
        return TokenStatistics(
            examples=len(lengths),
            tokens=int(lengths.sum(dtype=np.int64)),
            trained_tokens=int(np.frombuffer(self.trained, np.int32).sum(dtype=np.int64)),
            shortest=int(lengths[0]),
            median=int(np.median(lengths)),
            percentile_90=at[0.9],
            percentile_95=at[0.95],
            percentile_99=at[0.99],
            longest=int(lengths[-1]),
        )

    def _rows(self, chunks: Iterable[Chunk]) -> Iterator[tuple[StoredRow, list[Outcome]]]:
        """Yield each row with its outcomes, its own first."""
        for chunk in chunks:
            self.chunks += 1
            self.chunks_from_cache += chunk.from_cache
            outcomes: list[list[Outcome]] = [[] for _ in chunk.rows]
            for outcome in chunk.outcomes:
                outcomes[outcome.row].append(outcome)
            yield from zip(chunk.rows, outcomes, strict=True)

    def _keep_for_checking(self, name: str, conversation: Conversation, example: Example) -> None:
        self._checked_tokens += len(example.input_ids)
        if self._checked_tokens <= CHECKED_TOKENS or not self.checked:
            self.checked.append((name, conversation, example))

    def _counted(self, example: Example) -> Example:
        self.tokens.append(len(example.input_ids))
        # `trained_tokens` counts in Python, which takes as long as everything else here.
        self.trained.append(len(example.labels) - example.labels.count(IGNORE))
        return example

    def _count(self, number: int, row: StoredRow, outcomes: list[Outcome]) -> None:
        own = [outcome for outcome in outcomes if not outcome.copy]
        first, used = own[0], own[0].example is not None
        changed = bool(first.shortened) or len(own) > 1
        self.rows += used
        if not used:
            reason = SetAside(file=row.file, line=row.line, reason=first.reason, detail=first.detail)
            self.set_aside[number] = reason
        if first.reason == TOO_LONG:
            self.too_long[row.id] = first.tokens
        if changed:
            what: Change = "truncated" if first.shortened else "split"
            self.changed.append(
                ChangedRow(file=row.file, line=row.line, what=what, tokens=first.tokens, examples=len(own))
            )
        self.over_max_tokens += changed or first.reason in (TOO_LONG, "answer_too_long")
        for copy in (outcome for outcome in outcomes if outcome.copy):
            if used and copy.example is not None:
                self.copies[copy.copy] += 1
            else:
                self.copies_left_out[copy.reason or "its_row_is_not_used"] += 1


def sample_of(row: StoredRow, conversation: Conversation) -> Sample:
    """Make the sample that a row is scored as: everything before the answer, and the answer."""
    return Sample(id=row.id, prompt=conversation.prompt(), reference=conversation.answer(), group=row.group)


def refuse_too_long(data: Data, parts: Iterable[Part]) -> None:
    """Refuse rows that are too long, of all parts at once, where the recipe says so.

    Raises:
        DataError: names the first of them and the length that would do.
    """
    too_long = [row for part in parts for row in part.too_long.items()]
    if not too_long or data.overflow == "drop":
        return
    named = "\n".join(f"  {row}: {length} tokens" for row, length in too_long[:NAMED_ROWS])
    rest = f"\n  and {len(too_long) - NAMED_ROWS} more" if len(too_long) > NAMED_ROWS else ""
    longest = max(length for _, length in too_long)
    ways = "data.overflow=drop (or truncate, which shortens prompts; or split, for plain texts)"
    raise DataError(
        f"{len(too_long)} rows are longer than data.max_tokens ({data.max_tokens}):\n{named}{rest}",
        where="data.overflow",
        hint=f"--set data.max_tokens={longest}, or --set {ways}",
    )
