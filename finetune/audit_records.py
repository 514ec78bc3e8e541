"""What the data stage writes: the audit, and one line for each row that is set aside or shortened."""

from __future__ import annotations

from typing import Literal

from finetune.records import Record


class SetAside(Record):
    """A row that is not used, one line of data/set_aside.jsonl."""

    file: str
    """The source as the recipe names it."""
    line: int
    """Line (or record number, from 1) in the source."""
    reason: str
    """Short code, the same for all rows of a kind: `missing_column`, `empty_answer`, `too_long`, …"""
    detail: str
    """What exactly, for people; never the row's text."""


class SourceAccount(Record):
    """Rows of one source: every row is used for one purpose, set aside, or over the limit."""

    source: str
    sha256: str
    """Hash of the file's bytes (of the pinned commit, for a hub data set)."""
    rows: int
    """Rows in the source."""
    train: int
    validation: int
    held_out: int
    set_aside: int
    over_limit: int
    """Rows left unused because of a `limit`."""


class TokenStatistics(Record):
    """Lengths in tokens of the examples of one part."""

    examples: int
    tokens: int
    trained_tokens: int
    """Tokens with a label."""
    shortest: int
    median: int
    percentile_90: int
    percentile_95: int
    percentile_99: int
    longest: int


class LeakedSample(Record):
    """A sample that is scored and also stands among the rows that are trained on."""

    task: str
    sample: str
    """Id of the sample; for held-out rows file:line."""
    train: str
    """file:line of the first such training row."""
    kind: Literal["exact", "normalized", "ngram", "near"]
    """Equal as written; equal but for case, punctuation and spaces; 13 words in common; nearly equal."""
    part: Literal["prompt", "answer", "both"]
    """What is equal."""


class LeakCount(Record):
    """Samples of one task by the strongest way in which they stand among the training rows."""

    task: str
    samples: int
    exact: int = 0
    normalized: int = 0
    ngram: int = 0
    near: int = 0

    @property
    def share(self) -> float:
        """Share of the samples that are equal to training rows or share 13 words in a row with them."""
        return (self.exact + self.normalized + self.ngram) / self.samples

    @property
    def near_share(self) -> float:
        """Share of the samples that are nearly equal to training rows."""
        return self.near / self.samples


class Repetition(Record):
    """Training rows that repeat an earlier one."""

    rows: int
    """Training rows that were compared."""
    exact: int
    """Equal but for case, punctuation and spaces."""
    near: int
    examples: tuple[tuple[str, str], ...]
    """A few of them: the row, and the earlier one."""


class MaskAudit(Record):
    """The masks that were computed in a second way; one that differed would have stopped the run."""

    examples: int
    tokens: int
    probes: int
    """Conversations that every run checks beside its own."""


class TokenSpan(Record):
    """A piece of an example for the mask audit: its text, and whether it is trained on."""

    text: str
    trained: bool


Change = Literal["truncated", "split"]


class ChangedRow(Record):
    """A row of data/shortened.jsonl, which is learned in another form than it has."""

    file: str
    line: int
    what: Change
    tokens: int
    """Length before."""
    examples: int
    """How many it became."""


LEAKS = "leaks_into_samples"
"""Reason code of training rows that are set aside because they stand among the samples."""


class Audit(Record):
    """data/audit.json: the account of the data stage."""

    sources: tuple[SourceAccount, ...]
    set_aside_by_reason: dict[str, int]
    train: TokenStatistics
    validation: TokenStatistics | None
    held_out_samples: int
    truncated: int
    """Examples whose prompt was shortened."""
    split: int
    """Texts that were cut into several examples."""
    over_max_tokens: int
    """Rows that were longer than `data.max_tokens`, whatever was done about it."""
    repeated: int
    """Training rows that stand once more, because sources are mixed or classes evened out."""
    copies: dict[str, int]
    """Altered copies of training rows, by how they were altered."""
    copies_left_out: dict[str, int]
    """Reason → altered copies that are not learned: too long, say, or their row is not used."""
    turns: dict[str, int]
    """Role → messages of the training rows."""
    languages: dict[str, int]
    """Language (ISO 639-1) → training rows, in a sample of them."""
    labels: dict[str, int] | None
    """Label → training rows, for classification."""
    repetition: Repetition
    private: dict[str, int]
    """Kind of personal data that is looked for → how often it was found in the rows of all sources."""
    only_international_phones: bool = False
    """Phone numbers are looked for, and the recipe names no country in which they may be dialled."""
    leaks: tuple[LeakCount, ...]
    """One for each task that will be scored."""
    leaked: tuple[LeakedSample, ...]
    """The samples themselves, at most a thousand."""
    padding_saved: float
    """Share of the computed tokens that `training.batches: packed` would save."""
    masks: MaskAudit
    mask_preview: tuple[tuple[TokenSpan, ...], ...]
    """A few training examples as spans."""
    tokenizer_sha256: str
    template_sha256: str
    rows_per_second: float
    """Rows of all sources over the seconds that reading and rendering took."""
    chunks: int
    """Chunks of rows that were rendered."""
    chunks_from_cache: int
