"""Weights are read from safetensors and from nothing else."""

from __future__ import annotations

from collections.abc import Iterable

from finetune.errors import DataError

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def refuse_pickled_weights(names: Iterable[str], where: str) -> None:
    """Check that there are safetensors among a model's files.

    Raises:
        DataError: there are none; pickled weights can run any code when they are loaded.
    """
    known = sorted(names)
    if any(name.endswith(".safetensors") for name in known):
        return
    pickled = [name for name in known if name.endswith(_PICKLED)]
    if not pickled:
        raise DataError("no weights (*.safetensors) in it", where=where)
    raise DataError(
        f"its weights are pickled ({pickled[0]}), which can run code when loaded",
        where=where,
        hint="only safetensors are read; convert with https://huggingface.co/spaces/safetensors/convert, "
        "or on a machine you can spare with AutoModelForCausalLM.from_pretrained(…).save_pretrained(folder)",
    )
