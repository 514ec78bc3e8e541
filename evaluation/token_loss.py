"""The negative log-likelihood of labelled tokens, without ever holding the logits of all positions.

Only the positions that have a label are multiplied with the head, and logits stay in fp32 whatever the type of the
weights: rounded to bf16 they move the loss by half a percent. The gradient with respect to the hidden states is
computed in the same pass, while the probabilities are at hand. The head is frozen, so it has none.

In fp32 that is done a chunk at a time. In bf16 on a CPU it is attention, with the hidden states as queries and the
head as keys and as values: its log-sum-exp over the keys is the normalizer of the loss, and its output, the head's row
that is expected, less the target's own row, is the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_ROWS = 128
"""Positions multiplied with the head at once: 128 rows of 49,152 logits in fp32 are 25 MB."""
CHUNK_WORDS = 8192
"""Rows of the head that attention takes at once: it copies them twice to lay them out for its products."""
ROWS_MULTIPLE = 32
"""Zeros fill positions up to a multiple: products are compiled for their shape, and torch keeps these for good."""

Expect = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes hidden states (N, D) and a head (V, D), in bf16 on a CPU; returns the mean of the head's rows by probability,
(N, D), and the log-sum-exp of the logits, (N,), in fp32."""


def expect_by_attention(hidden_ND: Tensor, head_VD: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `Expect` says, by calls of torch's attention."""
    short = -len(hidden_ND) % ROWS_MULTIPLE
    hidden_11MD = functional.pad(hidden_ND, (0, 0, 0, short))[None, None]
    mean_MD = hidden_ND.new_zeros(hidden_11MD.shape[2:], dtype=torch.float32)
    normalizer_M = mean_MD.new_full((len(mean_MD),), float("-inf"))
    for part_11PD in head_VD[None, None].split(CHUNK_WORDS, 2):
        own_11MD, own_11M = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            hidden_11MD, part_11PD, part_11PD, 0.0, False, scale=1.0
        )
        before_M, own_M = normalizer_M, own_11M.flatten()
        normalizer_M = torch.logaddexp(before_M, own_M)
        mean_MD.mul_((before_M - normalizer_M).exp_()[:, None])
        mean_MD.addcmul_(own_11MD[0, 0].float(), (own_M - normalizer_M).exp_()[:, None])
    return mean_MD[: len(hidden_ND)], normalizer_M[: len(hidden_ND)]


def labelled_nll(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, expect: Expect = expect_by_attention) -> Tensor:
    """Negative log-likelihood of each target in nats, shape (N,), differentiable in `hidden_ND`.

    `hidden_ND` (N, D) are the hidden states that predict the targets, `head_VD` (V, D) the output embedding.

    Raises:
        ValueError: the head asks for a gradient, which this function does not give.
    """
    if head_VD.requires_grad:
        raise ValueError("the output head is trainable; labelled_nll gives it no gradient")
    with torch.autocast(hidden_ND.device.type, enabled=False):  # it would round the logits to bf16
        return cast(Tensor, _LabelledNll.apply(hidden_ND, head_VD, targets_N, expect))  # type: ignore[no-untyped-call]


def log_probabilities(hidden_UD: Tensor, head_VD: Tensor, predictor_N: Tensor, targets_N: Tensor) -> Tensor:
    """Log-probability in nats of each target, shape (N,), where `predictor_N` says which hidden state predicts it.

    A hidden state that predicts several targets is multiplied with the head once.
    """
    if _by_attention(hidden_UD, head_VD):
        _, normalizer_U = expect_by_attention(hidden_UD, head_VD)
        scores_N = torch.linalg.vecdot(hidden_UD[predictor_N].float(), head_VD[targets_N].float())
        return cast(Tensor, scores_N - normalizer_U[predictor_N])
    head = head_VD.float()
    found_N = hidden_UD.new_empty(len(targets_N), dtype=torch.float32)
    for start in range(0, len(hidden_UD), CHUNK_ROWS):
        logits = hidden_UD[start : start + CHUNK_ROWS].float() @ head.T
        normalizer = torch.logsumexp(logits, dim=-1)
        here = (predictor_N >= start) & (predictor_N < start + CHUNK_ROWS)
        row = predictor_N[here] - start
        found_N[here] = logits[row, targets_N[here]] - normalizer[row]
    return found_N


def shift(hidden_BTD: Tensor, labels_BT: Tensor, ignore: int) -> tuple[Tensor, Tensor]:
    """Return the hidden states (N, D) that predict a labelled token, and those tokens (N,), rows in order."""
    targets_BT = labels_BT[:, 1:]
    scored_BT = targets_BT != ignore
    return hidden_BTD[:, :-1][scored_BT], targets_BT[scored_BT]


class _LabelledNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, expect: Expect) -> Tensor:
        if _by_attention(hidden_ND, head_VD):
            nll_N, gradient_ND = _expected(hidden_ND, head_VD, targets_N, expect)
            ctx.save_for_backward(gradient_ND)
            ctx.dtype = hidden_ND.dtype
            return nll_N
        head = head_VD.float()
        needs_gradient = hidden_ND.requires_grad
        losses, gradients = [], []
        for hidden, targets in zip(hidden_ND.split(CHUNK_ROWS), targets_N.split(CHUNK_ROWS), strict=True):
            log_probabilities = torch.log_softmax(hidden.float() @ head.T, dim=-1)
            losses.append(-log_probabilities.gather(1, targets[:, None]).squeeze(1))
            if needs_gradient:
                slope = log_probabilities.exp_()
                slope[torch.arange(len(targets), device=slope.device), targets] -= 1
                gradients.append(slope @ head)
        if needs_gradient:
            ctx.save_for_backward(torch.cat(gradients) if gradients else hidden_ND.new_zeros(hidden_ND.shape).float())
            ctx.dtype = hidden_ND.dtype
        return torch.cat(losses) if losses else hidden_ND.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_ND,) = ctx.saved_tensors
        return (gradient_ND * grads[0][:, None]).to(ctx.dtype), None, None, None


def _by_attention(hidden_ND: Tensor, head_VD: Tensor) -> bool:
    both_bf16 = hidden_ND.dtype == head_VD.dtype == torch.bfloat16
    return both_bf16 and hidden_ND.device.type == "cpu" and len(hidden_ND) > 0


def _expected(hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, expect: Expect) -> tuple[Tensor, Tensor]:
    """Return the losses and their gradients in fp32."""
    mean_ND, normalizer_N = expect(hidden_ND, head_VD)
    target_ND = head_VD[targets_N].float()
    nll_N = normalizer_N - torch.linalg.vecdot(hidden_ND.float(), target_ND)
    return nll_N, target_ND.neg_().add_(mean_ND)
