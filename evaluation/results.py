"""What scoring leaves behind: one answer per sample, one estimate per metric, one difference per pair of contenders."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from evaluation.task import TaskKind


class _Value(BaseModel):
    # JSON has no infinity: a perplexity that overflows would be written as null and not be read again.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings")


class Output(_Value):
    """What one contender made of one sample."""

    sample: str
    """The sample's id."""
    prompt: str
    """The last message before the answer, for people to read."""
    reference: str
    """The right answer."""
    generated: str | None = None
    """Greedy text up to the stop token, stripped; none for `token_loss`."""
    stopped: bool | None = None
    """Whether the model ended its answer by itself."""
    chosen: str | None = None
    """The option of the highest log-likelihood, for `choose`."""
    reference_nll: float | None = None
    """Negative log-likelihood of the reference answer with its end token, in nats; none for classical baselines."""
    reference_tokens: int | None = None
    """Tokens that `reference_nll` sums over."""
    scores: dict[str, float]
    """Metric name → this sample's score, for metrics that are means over samples."""


class Estimate(_Value):
    """A figure with what it rests on."""

    value: float
    n: int
    """Samples behind the figure."""
    stderr: float | None
    """Standard error, where the metric has one."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""


class Identity(_Value):
    """Exactly what was scored, so that no result is mistaken for another."""

    contender: str
    model_sha256: str | None
    """Hash of the weights and tokenizer; none for classical baselines."""
    adapter_sha256: str | None = None
    quantization: str | None = None
    dtype: str | None = None
    task_sha256: str
    seed: int
    versions: dict[str, str]
    """Package → version."""


class Result(_Value):
    """One contender on one task."""

    task: str
    kind: TaskKind
    identity: Identity
    metrics: dict[str, Estimate]
    """Metric name → estimate."""
    seconds: float
    """Wall time of scoring, without loading."""
    outputs_sha256: str | None = None
    """Hash of the file of outputs beside it; none until written."""


class Difference(_Value):
    """One contender against another on the same samples."""

    metric: str
    contender: str
    against: str
    value: float
    """Contender minus the other."""
    n: int
    low: float
    """Lower end of the 95 % interval of the paired difference."""
    high: float
    mcnemar_p: float | None = None
    """Exact McNemar test, where each score is 0 or 1."""


METRIC_LABELS: dict[str, str] = {
    "exact_match": "exact match of the generated text",
    "choice_accuracy": "accuracy by log-likelihood over the options",
    "choice_macro_f1": "macro-F1 by log-likelihood over the options",
    "exact_match_macro_f1": "macro-F1 of the generated text",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "perplexity": "perplexity of the reference answer",
    "stopped": "answers ended by the model itself",
}
"""Metric name → what it is called for people."""

LOWER_IS_BETTER = frozenset({"perplexity"})
"""Metrics of which less is better."""
