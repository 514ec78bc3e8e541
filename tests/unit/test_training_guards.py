"""What is not finite is stopped before it counts; on a layer of two numbers."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainerState

from finetune.errors import TrainingStopped
from finetune.training_guards import GradientGuard, NotFinite, WeightGuard, check_gradients, first_not_finite

STATE = TrainerState(global_step=4)
NOT_FINITE = (float("nan"), float("inf"), -float("inf"))


@pytest.fixture
def model() -> torch.nn.Linear:
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad, layer.bias.grad = torch.ones(1, 2), torch.ones(1)
    return layer


@pytest.mark.parametrize("value", NOT_FINITE)
def test_the_first_that_is_not_finite_is_named(value: float) -> None:
    huge = torch.full((4,), 3e38)  # their norm is infinite, and they are not
    assert first_not_finite({}) is None
    assert first_not_finite({"huge": huge, "zero": torch.zeros(2)}) is None
    assert first_not_finite({"zero": torch.zeros(1), "one": torch.tensor([0.0, value])}) == "one"
    assert first_not_finite({"huge": huge, "one": torch.tensor([0.0, value]), "two": torch.tensor([value])}) == "one"


def test_what_is_finite_is_looked_at_once_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[torch.Tensor] = []
    plain = torch.isfinite
    monkeypatch.setattr(torch, "isfinite", lambda tensor: (looks.append(tensor), plain(tensor))[1])
    assert first_not_finite({str(number): torch.ones(3) for number in range(9)}) is None
    assert len(looks) == 1


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_gradient_stops_the_step(model: torch.nn.Linear, value: float) -> None:
    guard = GradientGuard(model)
    guard.on_pre_optimizer_step(None, STATE, None)
    model.bias.grad = torch.tensor([value])
    with pytest.raises(NotFinite, match="the gradient of bias is not finite at step 5; no update") as stopped:
        guard.on_pre_optimizer_step(None, STATE, None)
    assert (stopped.value.step, stopped.value.position) == (5, None)
    assert "training.learning_rate" in stopped.value.hint
    assert stopped.value.where == "training"


def test_a_tensor_without_a_gradient_stops_the_step(model: torch.nn.Linear) -> None:
    model.weight.grad = None
    with pytest.raises(TrainingStopped, match="weight gets no gradient at step 7"):
        check_gradients(dict(model.named_parameters()), 7)


def test_what_is_not_trained_needs_none(model: torch.nn.Linear) -> None:
    model.weight.requires_grad_(False)
    model.weight.grad = None
    GradientGuard(model).on_pre_optimizer_step(None, STATE, None)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_an_update_that_breaks_a_weight_is_taken_back(model: torch.nn.Linear, value: float) -> None:
    guard, before = WeightGuard(model), model.weight.detach().clone()
    guard.on_pre_optimizer_step(None, STATE, None)
    with torch.no_grad():
        model.weight += 1
    guard.on_optimizer_step(None, STATE, None)
    assert torch.equal(model.weight, before + 1)
    with torch.no_grad():
        model.weight[0, 1] = value
    with pytest.raises(NotFinite, match="the update of step 5 made weights of weight not finite") as stopped:
        guard.on_optimizer_step(None, STATE, None)
    assert stopped.value.step == 5
    assert torch.equal(model.weight, before)


def test_what_breaks_weights_elsewhere_leaves_those_from_before_the_last_update(model: torch.nn.Linear) -> None:
    guard, before = WeightGuard(model), model.weight.detach().clone()
    assert guard.settle(6) == 6
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    assert guard.settle(6) is None, "nothing was learned that could be put back"
    assert model.weight.isnan().all()
    with torch.no_grad():
        model.weight.copy_(before)
    guard.on_pre_optimizer_step(None, STATE, None)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    assert guard.settle(6) == 4
    assert torch.equal(model.weight, before)
