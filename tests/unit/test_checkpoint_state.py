"""The state of a training comes back as it was written, and what is no state is refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.checkpoint_state import (
    RandomState,
    read_tensors,
    read_tree,
    read_weights,
    write_tensors,
    write_tree,
)
from finetune.errors import DataError


def test_generators_come_back(tmp_path: Path) -> None:
    def drawn() -> tuple[object, ...]:
        return (
            random.random(),
            random.gauss(0, 1),
            float(np.random.rand()),
            float(np.random.randn()),
            torch.rand(3).tolist(),
            torch.randn(1).item(),
        )

    drawn()
    write_tree(tmp_path, "random", RandomState.now().tree)
    first, second = drawn(), drawn()
    assert first != second
    RandomState(read_tree(tmp_path, "random")).restore()
    assert (drawn(), drawn()) == (first, second)


def test_tensors_of_every_type_come_back(tmp_path: Path) -> None:
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.int8, torch.int64)
    tensors = [torch.arange(6).reshape(2, 3).to(kind) for kind in kinds] + [torch.tensor(3.0), torch.ones(4, 4).T]
    tree = {0: {"states": tensors, "step": 3, "nested": {"absmax": tensors[0]}}, "betas": (0.9, 0.999), "none": None}
    write_tree(tmp_path, "state", tree)
    found = read_tree(tmp_path, "state")
    assert found["betas"] == (0.9, 0.999)
    assert found["none"] is None
    assert found[0]["step"] == 3
    assert type(found[0]["step"]) is int
    for one, other in zip(found[0]["states"], tensors, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_eight_bit_states_come_back(tmp_path: Path) -> None:
    """bitsandbytes keeps bytes and one code book for all; the book is written with each, and read as it was."""
    book = torch.linspace(-1, 1, 256)
    quantized = {"state1": torch.randint(0, 255, (4096,), dtype=torch.uint8), "qmap1": book, "absmax1": torch.rand(16)}
    state = {"state": {0: {"step": 7, "quant": quantized}, 1: {"step": 7, "quant": quantized | {}}}}
    write_tree(tmp_path, "optimizer", state)
    found = read_tree(tmp_path, "optimizer")
    for index in (0, 1):
        for name, tensor in quantized.items():
            assert torch.equal(found["state"][index]["quant"][name], tensor)
            assert found["state"][index]["quant"][name].dtype == tensor.dtype


@pytest.mark.parametrize(
    "text",
    [
        "[]x",
        "[1]",
        '{"tensor": "9"}',
        '{"pickle": []}',
        '{"list": 3}',
        '{"list": [], "tuple": []}',
        "[" * 5000,
        '{"list": "ab"}',
        '{"dict": "ab"}',
        '{"list": "0"}',
        '{"tensor": 0}',
        "{}",
    ],
)
def test_what_is_no_state_is_refused(tmp_path: Path, text: str) -> None:
    write_tensors(tmp_path, "optimizer", {"0": torch.ones(1)})
    (tmp_path / "optimizer.json").write_text(text)
    with pytest.raises(DataError, match=r"optimizer\.json"):
        read_tree(tmp_path, "optimizer")


def test_what_has_no_form_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="holds a set"):
        write_tree(tmp_path, "state", {"a": {1}})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def test_without_tensors_there_is_no_file_of_them(tmp_path: Path) -> None:
    write_tree(tmp_path, "state", {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert read_tree(tmp_path, "state") == {"a": 1}
    with pytest.raises(DataError, match="no file of tensors"):
        read_tensors(tmp_path, "state")


def test_weights_have_names_shapes_and_types_of_the_model(tmp_path: Path) -> None:
    like = {"a": torch.ones(2, 3), "b": torch.zeros(2)}
    write_tensors(tmp_path, "weights", like)
    assert read_weights(tmp_path, "weights", like).keys() == like.keys()
    for wrong, named in (
        ({"a": like["a"]}, "b is on one side alone"),
        (like | {"c": like["b"]}, "c is on one side alone"),
        (like | {"b": like["b"].double()}, r"b is \(2,\), here \(2,\) of torch.float64"),
        (like | {"a": torch.ones(3, 2)}, r"a is \(2, 3\), here \(3, 2\) of torch.float32"),
    ):
        with pytest.raises(DataError, match=named):
            read_weights(tmp_path, "weights", wrong)


def test_generators_of_every_gpu_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states, restored = [torch.arange(4, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)], list[object]()
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restored.append)
    write_tree(tmp_path, "without", RandomState.now().tree)
    RandomState(read_tree(tmp_path, "without")).restore()
    assert restored == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    write_tree(tmp_path, "with", RandomState.now().tree)
    RandomState(read_tree(tmp_path, "with")).restore()
    assert len(restored) == 1
    assert all(torch.equal(one, other) for one, other in zip(restored[0], states, strict=True))  # type: ignore[call-overload]
