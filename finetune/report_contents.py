"""What a report says, as one frozen value: page, Markdown and JSON are three ways of writing it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from evaluation.results import Difference, Estimate
from evaluation.task import TaskKind
from finetune.audit_records import Audit
from finetune.merge_records import MergeProof
from finetune.recipe import Recipe
from finetune.records import Environment, StageTime
from finetune.training_records import StepMetrics, TrainingSummary

Outcome = Literal["better", "level", "worse", "unknown"]

HEADLINE: dict[TaskKind, str] = {"choose": "exact_match", "generate": "token_f1", "token_loss": "perplexity"}
"""Task kind → the metric that the verdict is about."""

SECOND: dict[TaskKind, str | None] = {
    "choose": "choice_accuracy",
    "generate": "perplexity",
    "token_loss": None,
}
"""Task kind → the metric that is drawn beside the headline."""

CONTENDER_LABELS: dict[str, str] = {
    "base": "Base",
    "adapter": "Adapter",
    "merged": "Merged",
    "merged_nf4": "Merged, NF4",
    "merged_int8": "Merged, int8",
    "majority": "Majority class",
    "tfidf": "TF-IDF",
}
"""Contender → what it is called for people."""


class _Part(BaseModel):
    # JSON has no infinity: a perplexity that overflows would be written as null and not be read again.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings")


class ContenderScores(_Part):
    """One row of the table of scores."""

    contender: str
    metrics: dict[str, Estimate]
    seconds: float
    """Wall time of scoring, without loading."""
    model_sha256: str | None
    """Hash of the weights and tokenizer; none for classical baselines."""


class Changes(_Part):
    """Samples by whether the base and the tuned model got them right; what the McNemar test looks at."""

    tuned: str
    """The contender that stands for the tuned model."""
    both_right: int
    gained: int
    """The base was wrong, the tuned model right."""
    lost: int
    """The base was right, the tuned model wrong."""
    both_wrong: int


class TaskReport(_Part):
    """All contenders on one task."""

    name: str
    description: str
    kind: TaskKind
    headline: str
    """The metric that counts first."""
    second: str | None
    """The metric drawn beside it, where any contender has it."""
    contenders: tuple[ContenderScores, ...]
    differences: tuple[Difference, ...]
    """Paired, against the base."""
    changes: Changes | None
    """None where a sample is not simply right or wrong."""
    task_sha256: str

    def estimate(self, contender: str, metric: str) -> Estimate | None:
        """Return a contender's figure; none where it was not scored or has no such metric."""
        for row in self.contenders:
            if row.contender == contender:
                return row.metrics.get(metric)
        return None

    def difference(self, contender: str, metric: str) -> Difference | None:
        """Return a contender's paired difference to the base; none where there is none."""
        for difference in self.differences:
            if (difference.contender, difference.metric, difference.against) == (contender, metric, "base"):
                return difference
        return None


class Verdict(_Part):
    """What came out, in words."""

    outcome: Outcome
    """`level` means that the 95 % interval of the paired difference holds 0."""
    finding: str
    """The comparison of adapter and base, without a full stop."""
    evidence: str
    """Difference, interval and test that the finding rests on; empty where there is no paired comparison."""
    remarks: tuple[str, ...]
    """What else must be known: the merge, the classical baseline, other tasks. Without full stops."""

    def sentence(self) -> str:
        """Return the finding and the remarks as one sentence."""
        finding = f"{self.finding} ({self.evidence})" if self.evidence else self.finding
        return "; ".join((finding, *self.remarks)) + "."


class Answer(_Part):
    """What one contender said to one sample."""

    contender: str
    text: str | None
    """None where the task only measures the loss."""
    right: bool | None
    """None where an answer is not simply right or wrong."""
    score: float | None
    """The sample's headline score; for the loss of the reference: nats per token."""


class SamplePair(_Part):
    """One held-out sample with the answers of the base and of the tuned model."""

    sample: str
    prompt: str
    reference: str
    answers: tuple[Answer, ...]


class MergeCheck(_Part):
    """One figure of the merge proof."""

    name: str
    value: str
    """The figure as it is shown."""
    limit: str
    """What it must be; empty where the figure is there to be read and not to be passed."""
    holds: bool | None
    """None where there is no limit."""
    meaning: str


class Fingerprint(_Part):
    """The hash of something that the result depends on."""

    what: str
    sha256: str


class Report(_Part):
    """Everything that the three forms of the report show."""

    name: str
    description: str
    verdict: Verdict
    command: str
    """What repeats the run."""
    seed: int
    tasks: tuple[TaskReport, ...]
    """The held-out task first."""
    samples: tuple[SamplePair, ...]
    """At most ten, evenly spread over the held-out samples by position."""
    steps: tuple[StepMetrics, ...]
    audit: Audit
    training: TrainingSummary
    merge: MergeProof
    merge_checks: tuple[MergeCheck, ...]
    stages: tuple[StageTime, ...]
    environment: Environment
    fingerprints: tuple[Fingerprint, ...]
    recipe: Recipe
