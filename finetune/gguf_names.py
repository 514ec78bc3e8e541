"""What llama.cpp calls the weights of a LLaMA model, and in which order it wants the rows of queries and keys.

A model file and an adapter file go by the same names and the same order, so that one fits the other.
"""

from __future__ import annotations

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from finetune.base_files import BaseFiles
from finetune.errors import DataError

ARCHITECTURE = "llama"

_LAYER = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


class RopeScaling(BaseModel):
    """How LLaMA 3.x stretches its rotary frequencies (config.json, `rope_parameters` or `rope_scaling`)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rope_type: str = Field("default", validation_alias=AliasChoices("rope_type", "type"))
    """Older models call it `type`."""
    rope_theta: float | None = None
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


class LlamaShape(BaseModel):
    """What of config.json a GGUF file states."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int
    rms_norm_eps: float
    vocab_size: int
    rope_theta: float | None = None
    rope_parameters: RopeScaling | None = None
    rope_scaling: RopeScaling | None = None

    @property
    def heads_of_keys(self) -> int:
        """Number of key and value heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Dimensions of one head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope(self) -> RopeScaling:
        """The rotary embedding, wherever this version of transformers wrote it."""
        found = self.rope_parameters or self.rope_scaling or RopeScaling()
        base = found.rope_theta or self.rope_theta or 10_000.0
        return found.model_copy(update={"rope_theta": base})


def read_shape(base: BaseFiles) -> LlamaShape:
    """Read the shape of a model from its config.json.

    Raises:
        DataError: it is not a LLaMA model, or its rotary embedding is one that the format cannot say.
    """
    try:
        shape = LlamaShape.model_validate(base.config)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"config.json: {'.'.join(map(str, first['loc']))}: {first['msg']}", where=str(base.folder)
        ) from error
    if shape.model_type != ARCHITECTURE:
        raise DataError(f"its architecture is {shape.model_type!r}", where=str(base.folder), hint="accepted: llama")
    if shape.rope.rope_type not in ("default", "llama3", "linear"):
        hint = "accepted: default, linear, llama3"
        raise DataError(f"rotary scaling {shape.rope.rope_type!r}", where=str(base.folder), hint=hint)
    return shape


def gguf_name(name: str, base: BaseFiles) -> str:
    """Return what llama.cpp calls a weight.

    Raises:
        DataError: it has no place in the format.
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    match name.split(".", 3):
        case ["model", "layers", number, rest] if rest in _LAYER:
            return f"blk.{number}.{_LAYER[rest]}"
    raise DataError(f"there is no place in the format for {name}", where=str(base.folder))


def permuted(name: str, weight: Tensor, shape: LlamaShape) -> Tensor:
    """Return queries and keys with the rows of each head in llama.cpp's order.

    transformers rotates the first half of a head against the second, llama.cpp neighbouring rows.
    """
    heads = _rotated_heads(name, shape)
    if heads is None:
        return weight
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def unpermuted(name: str, weight: Tensor, shape: LlamaShape) -> Tensor:
    """Return what `permuted` was given."""
    heads = _rotated_heads(name, shape)
    if heads is None:
        return weight
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, half, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _rotated_heads(name: str, shape: LlamaShape) -> int | None:
    return {"q_proj": shape.num_attention_heads, "k_proj": shape.heads_of_keys}.get(name.split(".")[-2])
