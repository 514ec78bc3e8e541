from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from evaluation import token_loss
from evaluation.token_loss import CHUNK_ROWS, CHUNK_WORDS, labelled_nll, log_probabilities, shift

WIDTH, VOCABULARY = 16, 50
COUNTS = (1, 2, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 2 * CHUNK_ROWS, 2 * CHUNK_ROWS + 44)


def inputs(count: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, WIDTH, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype)
    return hidden, head, torch.randint(VOCABULARY, (count,), generator=generator)


def reference(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and gradient by way of all logits."""
    own = hidden.detach().float().requires_grad_()
    losses = cross_entropy(own @ head.float().T, targets, reduction="none")
    (losses * weights).sum().backward()
    assert own.grad is not None
    return losses.detach(), own.grad


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("count", COUNTS)
def test_loss_and_gradient_equal_cross_entropy_of_all_logits(count: int) -> None:
    hidden, head, targets = inputs(count)
    weights = torch.linspace(0.5, 2.0, count)
    losses, gradient = reference(hidden, head, targets, weights)
    found = labelled_nll(hidden, head, targets)
    (found * weights).sum().backward()
    assert hidden.grad is not None
    assert found.shape == (count,)
    assert relative(found.detach(), losses) <= 1e-6
    assert relative(hidden.grad, gradient) <= 1e-6


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 40), chunk=st.integers(1, 41))
def test_chunks_do_not_show(count: int, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_loss, "CHUNK_ROWS", chunk)
        hidden, head, targets = inputs(count)
        losses, gradient = reference(hidden, head, targets, torch.ones(count))
        found = labelled_nll(hidden, head, targets)
        found.sum().backward()
        assert hidden.grad is not None
        assert relative(found.detach(), losses) <= 1e-6
        assert relative(hidden.grad, gradient) <= 1e-6
        predictor = torch.arange(count).flip(0)
        log_probability = log_probabilities(hidden.detach(), head, predictor, targets[predictor])
        assert relative(-log_probability, losses.detach()[predictor]) <= 1e-6


@pytest.mark.parametrize("count", [1, CHUNK_ROWS + 1])
@pytest.mark.parametrize("words", [1, 7, VOCABULARY, CHUNK_WORDS])
def test_bfloat16_is_computed_in_fp32_and_returned_as_bfloat16(
    count: int, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attention that computes it takes exponentials to 20 bits, and rounds the mean row to bf16, to 2⁻⁹."""
    monkeypatch.setattr(token_loss, "CHUNK_WORDS", words)
    hidden, head, targets = inputs(count, torch.bfloat16)
    losses, gradient = reference(hidden, head, targets, torch.ones(count))
    found = labelled_nll(hidden, head, targets)
    found.sum().backward()
    assert hidden.grad is not None
    assert found.dtype == torch.float32
    assert relative(found.detach(), losses) <= 1e-5
    assert hidden.grad.dtype == torch.bfloat16
    assert relative(hidden.grad.float(), gradient) <= 2**-8
    predictor = torch.arange(count).flip(0)
    log_probability = log_probabilities(hidden.detach(), head, predictor, targets[predictor])
    assert log_probability.dtype == torch.float32
    assert relative(-log_probability, losses.detach()[predictor]) <= 1e-5


def test_autocast_rounds_nothing() -> None:
    hidden, head, targets = inputs(40)
    alone = labelled_nll(hidden, head, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = labelled_nll(hidden, head, targets)
    assert torch.equal(alone, within)


def test_logits_rounded_to_bfloat16_would_be_noticed() -> None:
    hidden, head, targets = inputs(200, torch.bfloat16)
    rounded = cross_entropy((hidden.detach() @ head.T).float(), targets, reduction="none")
    assert relative(rounded, labelled_nll(hidden, head, targets).detach()) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_label_is_no_loss_and_a_gradient_of_nothing(dtype: torch.dtype) -> None:
    hidden, head, targets = inputs(0, dtype)
    found = labelled_nll(hidden, head, targets)
    assert found.shape == (0,)
    found.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, WIDTH)


def test_nothing_is_kept_where_no_gradient_is_asked_for() -> None:
    hidden, head, targets = inputs(3)
    assert not labelled_nll(hidden.detach(), head, targets).requires_grad


def test_trainable_head_is_refused() -> None:
    hidden, head, targets = inputs(3)
    with pytest.raises(ValueError, match="trainable"):
        labelled_nll(hidden, head.requires_grad_(), targets)


def test_shift_pairs_each_label_with_the_state_before_it() -> None:
    hidden = torch.arange(8.0).reshape(2, 4, 1)
    labels = torch.tensor([[7, -100, 5, 6], [-100, 9, -100, -100]])
    states, targets = shift(hidden, labels, -100)
    assert states.flatten().tolist() == [1, 2, 4]
    assert targets.tolist() == [5, 6, 9]
