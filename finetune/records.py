"""The base of what the stages write for each other and for the report, and where and how long a run ran."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A typed JSON file of a run, or a part of one: frozen, and a key it does not know is an error."""

    # JSON has no infinity: a perplexity that overflows would be written as null and not be read again.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="strings")


class Environment(Record):
    """environment.json: where it ran."""

    python: str
    platform: str
    processor: str
    instructions: tuple[str, ...] = ()
    """What of a processor decides which kernels compute: its vector instructions, and torch's choice among them."""
    compiler: str | None = None
    """What compiled the functions of training on a CPU that are no matrix products; none where torch's are used."""
    cpu_count: int
    torch_threads: int
    memory_bytes: int
    device: str
    driver: str | None = None
    """Version of the GPU's driver; none on a CPU."""
    versions: dict[str, str]


class StageTime(Record):
    """How long a stage took and the peak memory at its end."""

    stage: str
    seconds: float
    peak_memory_bytes: int
