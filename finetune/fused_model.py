"""The hidden states of a LLaMA model with LoRA, computed layer by layer by our own functions: training on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM

from evaluation.rendering import IGNORE
from evaluation.token_loss import Expect, expect_by_attention, shift
from finetune.batch_cutting import Batch
from finetune.elementwise import TILES_MULTIPLE, Elementwise, Group, Heads, Norm, Rotation
from finetune.fused_attention import Attention, Row, group_documents
from finetune.fused_layer import Layer, compute
from finetune.fused_linear import Stack, build_linear, build_stack

ADAPTER = "default"
"""The name that peft gives the one adapter."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def why_plain(model: PeftModel) -> str | None:
    """Say why the layers of a model are not ones that are computed here; none if they are."""
    base = model.get_base_model()
    if type(base) is not LlamaForCausalLM or any(type(layer) is not LlamaDecoderLayer for layer in base.model.layers):
        return f"{type(base).__name__} is not LlamaForCausalLM"
    config = base.config
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    if config.attention_dropout:
        return "its attention has dropout"
    for name, module in base.model.layers.named_modules():
        if name.rpartition(".")[2] in PROJECTIONS and (why := _why_plain_linear(module)):
            return f"{name} {why}"
    others = [name for name, p in model.named_parameters() if p.requires_grad and not _is_factor(name)]
    return f"{others[0]} is trained as well" if others else None


def _is_factor(name: str) -> bool:
    """Say whether a parameter is A or B of a projection."""
    of = name.removesuffix(f".lora_A.{ADAPTER}.weight").removesuffix(f".lora_B.{ADAPTER}.weight")
    return of != name and of.rpartition(".")[2] in PROJECTIONS


def _why_plain_linear(module: nn.Module) -> str | None:
    frozen = module
    if isinstance(module, LoraLayer):
        parts: Any = module
        if list(parts.active_adapters) != [ADAPTER] or parts.merged or parts.disable_adapters:
            return "has another adapter, or a merged one"
        if not isinstance(parts.lora_dropout[ADAPTER], nn.Identity):
            return "has dropout"
        if parts.use_dora[ADAPTER]:
            return "has DoRA"
        frozen = parts.get_base_layer()
    if not isinstance(frozen, nn.Linear):
        return f"is a {type(frozen).__name__}"
    return "has a bias" if frozen.bias is not None else None


class FusedModel:
    """A model whose layers are taken apart once; their parameters stay where they are."""

    def __init__(self, model: PeftModel, elementwise: Elementwise, *, recompute: bool = False) -> None:
        """Take a model that `why_plain` has nothing against; `recompute` keeps little for the backward pass."""
        base = cast(Any, model.get_base_model())
        _copy_out_of_file(base)
        self._decoder = base.model
        self._layers = [build_layer(layer, elementwise) for layer in self._decoder.layers]
        self._norm = build_norm(self._decoder.norm)
        self._scaling = float(self._decoder.layers[0].self_attn.scaling)
        self._elementwise = elementwise
        self.recompute = recompute
        # In bf16 zeros fill a row up, and its documents for their attention: so tiles need them, and oneDNN compiles a
        # product for its shape, in 2 ms, and keeps half a megabyte of it.
        in_bf16 = self._decoder.embed_tokens.weight.dtype == torch.bfloat16
        self.multiple = TILES_MULTIPLE if in_bf16 else 1
        fits = in_bf16 and base.config.hidden_size % TILES_MULTIPLE == 0
        self.expect: Expect = elementwise.tiles.expect if fits and elementwise.tiles else expect_by_attention

    def hidden_states(self, documents: Sequence[Tensor]) -> Tensor:
        """Return the last hidden states of documents, given longest first, one after another: (T, D)."""
        positions_T = torch.cat([torch.arange(len(one)) for one in documents])
        x_TD = self._decoder.embed_tokens(torch.cat(list(documents)))
        tokens = len(x_TD)
        x_TD = functional.pad(x_TD, (0, 0, 0, -tokens % self.multiple))
        groups = group_documents([len(one) for one in documents], self.multiple)
        row = self._row(groups, functional.pad(positions_T, (0, len(x_TD) - tokens)), x_TD)
        for layer in self._layers:
            x_TD = compute(layer, layer.adapters(x_TD.dtype), row, x_TD, recompute=self.recompute)
        return _normed(self._norm, self._elementwise, x_TD)[:tokens]

    def predicting(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the hidden states (N, D) that predict the labelled tokens of a batch, and those tokens (N,)."""
        documents, labels_T = documents_of(batch)
        return shift(self.hidden_states(documents)[None], labels_T[None], IGNORE)

    def _row(self, groups: Sequence[Group], positions_T: Tensor, x_TD: Tensor) -> Row:
        cos_1TE, sin_1TE = self._decoder.rotary_emb(x_TD[None], positions_T[None])
        cos_TE, sin_TE = cos_1TE[0].contiguous(), sin_1TE[0].clone()
        sin_TE[:, : sin_TE.shape[-1] // 2].neg_()
        scaled = Rotation(cos_TE * self._scaling, sin_TE * self._scaling)
        return Row(groups, scaled, Rotation(cos_TE, sin_TE))


def _copy_out_of_file(base: nn.Module) -> None:
    """Copy the weights that `build_stack` does not move: one that lies in a mapped file keeps all of it in memory."""
    moved = {id(module.weight) for name, module in base.named_modules() if name.rpartition(".")[2] in PROJECTIONS}
    for parameter in base.parameters():
        if id(parameter) not in moved and not parameter.requires_grad:
            parameter.data = parameter.data.clone()


def documents_of(batch: Batch) -> tuple[list[Tensor], Tensor]:
    """Take the examples of a padded or packed batch apart: the ids of each, longest first, and the labels in a row.

    The first token of an example has no label, since in a row the one before would predict it.
    """
    if "position_ids" in batch:
        starts = torch.nonzero(batch["position_ids"][0] == 0)[:, 0].tolist()
        spans = list(zip(starts, [*starts[1:], batch["input_ids"].shape[1]], strict=True))
        rows = [(batch["input_ids"][0, a:b], batch["labels"][0, a:b]) for a, b in spans]
    else:
        lengths = batch["attention_mask"].sum(1).tolist()
        rows = [
            (ids[:n], labels[:n]) for ids, labels, n in zip(batch["input_ids"], batch["labels"], lengths, strict=True)
        ]
    rows.sort(key=lambda row: -len(row[0]))
    labels_T = torch.cat([labels.clone().index_fill_(0, torch.tensor([0]), IGNORE) for _, labels in rows])
    return [ids for ids, _ in rows], labels_T


def build_norm(module: Any) -> Norm:
    """Take a norm of transformers' apart."""
    return Norm(module.weight.detach(), float(module.variance_epsilon))


def build_layer(module: Any, elementwise: Elementwise) -> Layer:
    """Take a decoder layer of transformers' and the adapters in it apart."""
    attention, mlp = module.self_attn, module.mlp
    config = attention.config
    heads = Heads(config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads)

    input_norm = build_norm(module.input_layernorm)
    dtype = input_norm.weight_D.dtype
    fits = dtype == torch.bfloat16 and attention.head_dim % TILES_MULTIPLE == 0

    def stack(*modules: nn.Module) -> Stack:
        return build_stack([build_linear(module, ADAPTER) for module in modules], elementwise, dtype)

    return Layer(
        input_norm,
        stack(attention.q_proj, attention.k_proj, attention.v_proj),
        stack(attention.o_proj),
        build_norm(module.post_attention_layernorm),
        stack(mlp.gate_proj, mlp.up_proj),
        stack(mlp.down_proj),
        Attention(heads, elementwise, elementwise.tiles if fits else None),
        elementwise,
    )


def _normed(norm: Norm, elementwise: Elementwise, x_TD: Tensor) -> Tensor:
    return cast(Tensor, _Normed.apply(x_TD, norm, elementwise))  # type: ignore[no-untyped-call]


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, norm: Norm, elementwise: Elementwise) -> Tensor:
        y_TD, scale_T1 = elementwise.norm(x_TD, norm, 0)
        ctx.save_for_backward(x_TD, scale_T1)
        ctx.norm, ctx.elementwise = norm, elementwise
        return y_TD

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        x_TD, scale_T1 = ctx.saved_tensors
        dx_TD, _ = ctx.elementwise.norm_backward(slopes[0].clone(), x_TD, scale_T1, ctx.norm, None)
        return dx_TD, None, None
