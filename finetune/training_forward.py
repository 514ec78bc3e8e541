"""The loss in the place of a causal model's forward: the sum over the labelled tokens, without all logits."""

from __future__ import annotations

import types
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from evaluation.rendering import IGNORE
from evaluation.token_loss import expect_by_attention, labelled_nll, shift
from finetune.batch_cutting import Batch
from finetune.fused_model import FusedModel


@dataclass(frozen=True)
class SummedLoss:
    """What the replaced forward returns: the sum of the labelled tokens' losses, in nats."""

    loss: Tensor


def sum_loss_in_forward(model: PreTrainedModel, fused: FusedModel | None) -> None:
    """Replace the forward of the causal model, as TRL does, so that DDP sees the loss come out of its module."""

    expect = expect_by_attention if fused is None else fused.expect

    def forward(
        self: PreTrainedModel,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **_peft_fills: None,
    ) -> SummedLoss:
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        batch = {"input_ids": input_ids, "labels": labels} | {k: v for k, v in given.items() if v is not None}
        hidden_ND, targets_N = _predicting(self, batch) if fused is None else fused.predicting(batch)
        return SummedLoss(labelled_nll(hidden_ND, self.get_output_embeddings().weight, targets_N, expect).sum())

    model.forward = types.MethodType(forward, model)


def restore_forward(model: PreTrainedModel) -> None:
    """Give a model its own forward back after training."""
    model.__dict__.pop("forward", None)


def _predicting(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    # Packed rows have positions and no mask; with a cache they would see each other.
    hidden_BTD = model.base_model(
        input_ids=batch["input_ids"],
        attention_mask=batch.get("attention_mask"),
        position_ids=batch.get("position_ids"),
        use_cache=False,
    ).last_hidden_state
    return shift(hidden_BTD, batch["labels"], IGNORE)
