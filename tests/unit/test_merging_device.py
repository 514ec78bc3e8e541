"""Where a merge is compared with its adapter: on the GPU where it leaves half of it free, else on the CPU."""

from __future__ import annotations

import pytest
import torch

from finetune import merging_fold

MODEL = torch.nn.Linear(10, 10, bias=False)
BYTES = 400


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Pretend that there is a GPU with so much room."""
    room = {"cuda:0": 2 * BYTES}
    monkeypatch.setattr(merging_fold, "choose_device", lambda wanted: "cuda:0" if wanted == "auto" else wanted)
    monkeypatch.setattr(merging_fold, "free_memory", room.__getitem__)
    return room


def test_a_gpu_that_has_twice_the_room_is_taken(free: dict[str, int]) -> None:
    assert merging_fold.device_to_compare_on(MODEL, "auto") == "cuda:0"
    free["cuda:0"] -= 1
    assert merging_fold.device_to_compare_on(MODEL, "auto") == "cpu"


@pytest.mark.usefixtures("free")
def test_a_cpu_that_was_asked_for_is_taken() -> None:
    assert merging_fold.device_to_compare_on(MODEL, "cpu") == "cpu"


@pytest.mark.usefixtures("free")
def test_a_gpu_that_rounds_fp32_products_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert merging_fold.device_to_compare_on(MODEL, "auto") == "cpu"
