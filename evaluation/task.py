"""A task: one typed YAML file that says what to measure on which samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from evaluation.conversation import Conversation

TaskKind = Literal["choose", "generate", "token_loss"]


class Task(BaseModel):
    """What to measure on which samples.

    `choose` asks for one of a closed set of options: scored by log-likelihood over the options and, apart, by exact
    match of the generated text. `generate` compares the generated text with the reference. `token_loss` only
    measures the loss of the reference. The loss of the reference answer is measured for every kind.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    version: Literal[1]
    """Version of the task format."""
    name: Annotated[str, Field(pattern=r"^[a-z0-9_][a-z0-9._-]{0,99}$")]
    """Name in results and file names."""
    description: str = ""
    """One sentence for people."""
    kind: TaskKind
    """What is asked of the model."""
    samples: Annotated[str, Field(min_length=1)]
    """JSONL file of samples, relative to the task file."""
    options: tuple[str, ...] = ()
    """The closed set of answers, for `choose`."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest generated answer, for `choose` and `generate`."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first this many samples."""


class Sample(BaseModel):
    """One question: the conversation up to the answer, and the reference answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    """Unique within the task; the file and line of the row, for held-out rows."""
    prompt: Conversation
    """Everything before the answer."""
    reference: str
    """The right answer."""
    group: str | None = None
    """What the split was made by."""


class LoadedTask(BaseModel):
    """A task with its samples read and the hash of everything that it consists of."""

    model_config = ConfigDict(frozen=True)

    task: Task
    file: Path
    samples: tuple[Sample, ...]
    sha256: str
    """Hash of the task and of the samples that are scored."""
