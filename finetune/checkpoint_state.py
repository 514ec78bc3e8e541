"""The state of a training run as safetensors and JSON: values in a tree are JSON, and tensors in it stand in a file.

Tensors keep their type, so that the 8-bit states and code books of bitsandbytes come back as they were.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune.errors import DataError

Tree = None | bool | int | float | str | Tensor | list["Tree"] | tuple["Tree", ...] | dict[Any, "Tree"]
"""What the state of an optimizer, a schedule or a generator is made of."""


def write_tree(folder: Path, name: str, tree: Tree) -> None:
    """Write NAME.json, and NAME.safetensors where there are tensors."""
    tensors: dict[str, Tensor] = {}
    value = _to_json(tree, tensors)
    (folder / f"{name}.json").write_text(json.dumps(value) + "\n", encoding="utf-8")
    if tensors:
        write_tensors(folder, name, tensors)


def read_tree(folder: Path, name: str) -> Any:
    """Read what `write_tree` wrote, tensors on the CPU.

    Raises:
        DataError: it is something else.
    """
    file = folder / f"{name}.json"
    try:
        tensors = read_tensors(folder, name) if (folder / f"{name}.safetensors").exists() else {}
        return _from_json(json.loads(file.read_text(encoding="utf-8")), tensors)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"it is no state of a training: {type(error).__name__}", where=str(file)) from error


def write_tensors(folder: Path, name: str, tensors: dict[str, Tensor]) -> None:
    """Write NAME.safetensors; tensors that share memory are written one by one."""
    whole = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    save_file(whole, folder / f"{name}.safetensors")


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """Read NAME.safetensors.

    Raises:
        DataError: it is missing or no such file.
    """
    file = folder / f"{name}.safetensors"
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError("it is no file of tensors", where=str(file)) from error


def read_weights(folder: Path, name: str, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read trainable tensors that have the names, shapes and types of those here.

    Raises:
        DataError: names the first that has not.
    """
    found = read_tensors(folder, name)
    where = str(folder / f"{name}.safetensors")
    if others := found.keys() ^ like.keys():
        raise DataError(f"it does not fit this model: {min(others)} is on one side alone", where=where)
    for key, tensor in found.items():
        if (tensor.shape, tensor.dtype) != (like[key].shape, like[key].dtype):
            here = f"{tuple(like[key].shape)} of {like[key].dtype}"
            raise DataError(f"it does not fit this model: {key} is {tuple(tensor.shape)}, here {here}", where=where)
    return found


@dataclass(frozen=True)
class RandomState:
    """The state of every generator that a training step may draw from: what dropout depends on."""

    tree: Tree

    @staticmethod
    def now() -> RandomState:
        """Take the states of Python, numpy and torch, and of every GPU that this process has used."""
        version, keys, following = random.getstate()
        numpy_state = np.random.get_state(legacy=False)  # the generator that libraries draw from
        assert isinstance(numpy_state, dict)
        cuda: list[Tree] = list(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else []
        return RandomState(
            {
                "python": (version, tuple(keys), following),
                "numpy": {
                    **numpy_state,
                    "state": {"key": numpy_state["state"]["key"].tolist(), "pos": int(numpy_state["state"]["pos"])},
                },
                "torch": torch.get_rng_state(),
                "cuda": cuda,
            }
        )

    def restore(self) -> None:
        """Put all of them back."""
        tree: Any = self.tree
        random.setstate(tree["python"])
        numpy_state = tree["numpy"] | {
            "state": tree["numpy"]["state"] | {"key": np.array(tree["numpy"]["state"]["key"], dtype=np.uint32)}
        }
        np.random.set_state(numpy_state)
        torch.set_rng_state(tree["torch"])
        if tree["cuda"]:
            torch.cuda.set_rng_state_all(tree["cuda"])


def _to_json(value: Tree, tensors: dict[str, Tensor]) -> JsonValue:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Tensor():
            name = str(len(tensors))
            tensors[name] = value
            return {"tensor": name}
        case list():
            return {"list": [_to_json(item, tensors) for item in value]}
        case tuple():
            return {"tuple": [_to_json(item, tensors) for item in value]}
        case dict():
            return {"dict": [[_to_json(key, tensors), _to_json(item, tensors)] for key, item in value.items()]}
        case _:
            raise TypeError(f"a training state holds a {type(value).__name__}, which has no form in JSON")


def _from_json(value: JsonValue, tensors: dict[str, Tensor]) -> Tree:
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError("a list without its kind")
        return value
    ((kind, content),) = value.items()
    if kind == "tensor" and isinstance(content, str):
        return tensors[content]
    if not isinstance(content, list):
        raise ValueError(f"no {kind}")
    match kind:
        case "list":
            return [_from_json(item, tensors) for item in content]
        case "tuple":
            return tuple(_from_json(item, tensors) for item in content)
        case "dict":
            pairs = [item for item in content if isinstance(item, list)]
            return {_from_json(key, tensors): _from_json(item, tensors) for key, item in pairs}
        case _:
            raise ValueError(f"no such kind: {kind}")
