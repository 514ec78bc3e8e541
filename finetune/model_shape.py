"""The sizes of a LLaMA model, read from its config.json alone, and how many parameters follow from them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finetune.errors import DataError
from finetune.recipe import Projection

PROJECTIONS: tuple[Projection, ...] = get_args(Projection)

_Size = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a LLaMA model; the names are those of the field, config.json's are in `read_shape`."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    """Whether the output head is the embedding."""
    attention_bias: bool = False
    mlp_bias: bool = False

    @property
    def query_size(self) -> int:
        """Outputs of q_proj: all heads together."""
        return self.heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Outputs of k_proj, and of v_proj."""
        return self.kv_heads * self.head_size

    def projection(self, name: Projection) -> tuple[int, int]:
        """Return inputs and outputs of a projection."""
        match name:
            case "q_proj":
                return self.hidden, self.query_size
            case "k_proj" | "v_proj":
                return self.hidden, self.kv_size
            case "o_proj":
                return self.query_size, self.hidden
            case "gate_proj" | "up_proj":
                return self.hidden, self.intermediate
            case "down_proj":
                return self.intermediate, self.hidden

    @property
    def linear_parameters(self) -> int:
        """Count the weights of the seven projections of all layers: what quantization stores in 4 bits."""
        return self.layers * sum(inputs * outputs for inputs, outputs in map(self.projection, PROJECTIONS))

    @property
    def bias_parameters(self) -> int:
        """Count the biases of all layers, which the published LLaMA models do not have."""
        attention = self.query_size + 2 * self.kv_size + self.hidden
        mlp = 2 * self.intermediate + self.hidden
        return self.layers * (attention * self.attention_bias + mlp * self.mlp_bias)

    @property
    def embedding_parameters(self) -> int:
        """Count the embedding, and the output head where it is one of its own."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def norm_parameters(self) -> int:
        """Count the weights of two norms a layer and the last."""
        return (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        """Count every parameter, each once."""
        return self.linear_parameters + self.bias_parameters + self.embedding_parameters + self.norm_parameters

    def adapter_parameters(self, targets: tuple[Projection, ...], rank: int, *, dora: bool) -> int:
        """Count the two factors of every target of all layers (LoRA, section 4.1), and DoRA's length of each row."""
        sizes = [self.projection(name) for name in targets]
        return self.layers * sum(rank * (inputs + outputs) + outputs * dora for inputs, outputs in sizes)


class _Config(BaseModel):
    """What of a config.json counts; the rest is left unread."""

    model_config = ConfigDict(extra="ignore", strict=True)

    model_type: str
    num_hidden_layers: _Size
    hidden_size: _Size
    intermediate_size: _Size
    num_attention_heads: _Size
    num_key_value_heads: _Size | None = None
    head_dim: _Size | None = None
    vocab_size: _Size
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False


def read_shape(config: Path) -> ModelShape:
    """Read the sizes from a model's config.json.

    Raises:
        DataError: it is no LLaMA model's, or lacks a size.
    """
    try:
        found = _Config.model_validate(json.loads(config.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else "it is not JSON"
        raise DataError(f"no sizes can be read from it: {what}", where=str(config)) from error
    if found.model_type != "llama":
        raise DataError(f"its architecture is {found.model_type!r}", where=str(config), hint="accepted: llama")
    return ModelShape(
        layers=found.num_hidden_layers,
        hidden=found.hidden_size,
        intermediate=found.intermediate_size,
        heads=found.num_attention_heads,
        kv_heads=found.num_key_value_heads or found.num_attention_heads,
        head_size=found.head_dim or found.hidden_size // found.num_attention_heads,
        vocabulary=found.vocab_size,
        tied=found.tie_word_embeddings,
        attention_bias=found.attention_bias,
        mlp_bias=found.mlp_bias,
    )
