"""What the stages write for each other and for the report: typed JSON files of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    # JSON has no infinity: a perplexity that overflows would be written as null and not be read again.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings")


class SetAside(_Record):
    """A row that is not used, one line of data/set_aside.jsonl."""

    file: str
    """The source as the recipe names it."""
    line: int
    """Line (or record number, from 1) in the source."""
    reason: str
    """Short code, the same for all rows of a kind: `missing_column`, `empty_answer`, `too_long`, …"""
    detail: str
    """What exactly, for people; never the row's text."""


class SourceAccount(_Record):
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


class TokenStatistics(_Record):
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


class LeakedSample(_Record):
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


class LeakCount(_Record):
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


class Repetition(_Record):
    """Training rows that repeat an earlier one."""

    rows: int
    """Training rows that were compared."""
    exact: int
    """Equal but for case, punctuation and spaces."""
    near: int
    examples: tuple[tuple[str, str], ...]
    """A few of them: the row, and the earlier one."""


class MaskAudit(_Record):
    """The masks that were computed in a second way; one that differed would have stopped the run."""

    examples: int
    tokens: int
    probes: int
    """Conversations that every run checks beside its own."""


class TokenSpan(_Record):
    """A piece of an example for the mask audit: its text, and whether it is trained on."""

    text: str
    trained: bool


Change = Literal["truncated", "split"]


class ChangedRow(_Record):
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


class Audit(_Record):
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


class StepMetrics(_Record):
    """One line of training/metrics.jsonl."""

    step: int
    loss: float | None = None
    """Mean negative log-likelihood of the step's labelled tokens, in nats."""
    validation_loss: float | None = None
    """Mean negative log-likelihood of the validation rows' labelled tokens, in nats."""
    learning_rate: float | None = None
    grad_norm: float | None = None
    """Before clipping."""
    tokens: int = 0
    """Tokens without padding, so far."""
    seconds: float = 0.0
    """Since training began."""


class StoppedRow(_Record):
    """One line of stopped/rows.jsonl: an example of the batch that stopped training; never its text."""

    micro_batch: int
    """Number of the micro-batch in its step, from 1."""
    example: int
    """Number of the example in data/train.arrow, from 0."""
    row: str | None
    """Where it comes from, as file:line; none in data that an older version has prepared."""
    tokens: int
    trained_tokens: int
    """Tokens with a label."""


class MemorySetting(_Record):
    """How training was fitted into the memory there is; a step has the same rows, whatever it says."""

    tokens_per_micro_batch: int | None = None
    """Most tokens with padding that are computed at a time; a single longer example is. None: batches as planned."""
    gradient_checkpointing: bool = False
    """Whether it was switched on because memory ran out."""


AS_PLANNED = MemorySetting()


class Divergence(_Record):
    """The loss of so many steps on end was above a multiple of what it began with."""

    step: int
    """The first of them."""
    steps: int
    start: float
    """Mean loss of the first steps, in nats."""
    limit: float
    """What it was above."""


class Plateau(_Record):
    """The second half of the steps brought the loss hardly down."""

    first_half: float
    """Lowest loss of a tenth of the steps in the first half, in nats."""
    second_half: float


class TrainingSummary(_Record):
    """training/summary.json."""

    steps: int
    kept_step: int
    """The step whose adapter was kept."""
    examples: int
    tokens: int
    """Tokens without padding over all steps."""
    trained_tokens: int
    seconds: float
    """Of all parts of a training that was interrupted; what came after its last checkpoint is in none of them."""
    resumed_after: tuple[int, ...] = ()
    """Steps after which it was gone on with from a checkpoint; the figures here are of the whole run."""
    tokens_per_second: float
    peak_memory_bytes: int
    """Peak resident memory of the process (of all processes together, on several devices)."""
    device: str
    devices: int
    trainable_parameters: int
    base_parameters: int
    choices: dict[str, str]
    """What was chosen by capability: attention, loss, optimizer."""
    memory: MemorySetting = AS_PLANNED
    divergence: Divergence | None = None
    plateau: Plateau | None = None
    adapter_sha256: str
    """Hash of adapter_model.safetensors."""


class MergeCandidate(_Record):
    """One way of folding, measured on the validation rows."""

    onto: Literal["full_precision", "dequantized"]
    validation_nll: float | None
    """Mean negative log-likelihood of the answers as saved, in nats; none without validation rows."""


class DoorProof(_Record):
    """One way in to the trained model: conversations became the token ids that scoring makes of them, all of them."""

    door: str
    conversations: int
    tokens: int
    """Token ids that were compared."""


class GreedyProof(_Record):
    """The greedy answers of a saved merge beside those of the adapter on the base that it was folded into."""

    prompts: int
    tokens: int
    """Most new tokens a prompt."""
    equal: int
    """Answers that are the same, token by token."""
    stopped: int
    """Answers that the merge ended by itself."""
    largest_gap: float | None
    """Where answers part, the adapter's logit of its token above that of the merge's; none where all are equal."""
    allowed_gap: float
    """Several times the largest logit difference on the probe: a gap below it is a tie that rounding breaks."""


class MergeProof(_Record):
    """merged/merge.json: what was folded into what, and how far the result is from what was trained."""

    onto: Literal["full_precision", "dequantized"]
    dtype: str
    candidates: tuple[MergeCandidate, ...]
    probe_rows: int
    probe_tokens: int
    """Answer tokens that the comparisons below are made on."""
    max_logit_difference: float
    """Merged against adapter on the same base, both in fp32 before saving."""
    logit_scale: float
    """Largest absolute logit on the probe, beside which the difference above is to be read."""
    agreement: float
    """Share of answer tokens with the same most probable token: reloaded merge against adapter on the same base."""
    agreement_as_trained: float
    """The same against the model as trained (4-bit base and adapter)."""
    kl_as_trained: float
    """Mean KL divergence, as trained from merged, on answer tokens, in nats."""
    kl_to_base: float
    """Mean KL divergence of the merge from the untuned base: proof that the merge is not a no-op."""
    nll_base: float
    """Mean answer loss of the untuned base, in nats."""
    nll_as_trained: float
    nll_merged: float
    gain_kept: float | None
    """(nll_base - nll_merged) / (nll_base - nll_as_trained); none where training did not lower the loss."""
    doors: tuple[DoorProof, ...] = ()
    """Ways in that were compared; a merge without them is not published."""
    greedy: GreedyProof | None = None
    merged_sha256: str
    seconds: float


class Environment(_Record):
    """environment.json: where it ran."""

    python: str
    platform: str
    processor: str
    instructions: tuple[str, ...] = ()
    """What of a processor decides which kernels compute: its vector instructions, and torch's choice among them."""
    cpu_count: int
    torch_threads: int
    memory_bytes: int
    device: str
    driver: str | None = None
    """Version of the GPU's driver; none on a CPU."""
    versions: dict[str, str]


class StageTime(_Record):
    """How long a stage took and the peak memory at its end."""

    stage: str
    seconds: float
    peak_memory_bytes: int
