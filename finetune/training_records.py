"""What training writes: its metrics, its summary, and the rows of the batch that stopped it."""

from __future__ import annotations

from finetune.records import Record


class StepMetrics(Record):
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


class StoppedRow(Record):
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


class MemorySetting(Record):
    """How training was fitted into the memory there is; a step has the same rows, whatever it says."""

    tokens_per_micro_batch: int | None = None
    """Most tokens with padding that are computed at a time; a single longer example is. None: batches as planned."""
    gradient_checkpointing: bool = False
    """Whether it was switched on because memory ran out."""


AS_PLANNED = MemorySetting()


class Divergence(Record):
    """The loss of so many steps on end was above a multiple of what it began with."""

    step: int
    """The first of them."""
    steps: int
    start: float
    """Mean loss of the first steps, in nats."""
    limit: float
    """What it was above."""


class Plateau(Record):
    """The second half of the steps brought the loss hardly down."""

    first_half: float
    """Lowest loss of a tenth of the steps in the first half, in nats."""
    second_half: float


class TrainingSummary(Record):
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
