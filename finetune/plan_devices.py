"""What memory there is to plan for: named devices, a stated amount, or this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import psutil

from finetune.errors import MachineError, Problem, RecipeError, nearest
from finetune.machine import has_gpu

MIB = 2**20
CUDA_CONTEXT = 600 * MIB
"""Taken on every GPU by the driver and torch's kernels before a tensor is made: 0.4 to 0.6 GiB, by card and driver."""
CACHING = 0.03
"""Share of a GPU's memory that is left between torch's cached blocks; what `reserved` is above `allocated`."""
SYSTEM = 0.1
"""Share of a machine's memory that is left to everything else on it."""


@dataclass(frozen=True)
class Device:
    """A device to plan for."""

    name: str
    kind: Literal["cpu", "cuda"]
    bytes: int
    """As it says itself: a GPU's total in nvidia-smi, a machine's memory."""

    @property
    def usable(self) -> int:
        """Return what training can take of it."""
        if self.kind == "cpu":
            return int(self.bytes * (1 - SYSTEM))
        return int((self.bytes - CUDA_CONTEXT) * (1 - CACHING))


DEVICES = {
    "rtx4090": Device("GeForce RTX 4090", "cuda", 24_564 * MIB),
    "a10g": Device("A10G", "cuda", 23_028 * MIB),
    "l40s": Device("L40S", "cuda", 46_068 * MIB),
    "a100-40": Device("A100 40 GB", "cuda", 40_960 * MIB),
    "a100-80": Device("A100 80 GB", "cuda", 81_920 * MIB),
    "h100": Device("H100 80 GB", "cuda", 81_559 * MIB),
    "h200": Device("H200", "cuda", 143_771 * MIB),
}
"""Totals as nvidia-smi shows them."""

_UNITS = {"gb": 10**9, "gib": 2**30, "g": 10**9, "mb": 10**6, "mib": 2**20, "tb": 10**12}


def parse_memory(text: str) -> int:
    """Read an amount such as `24GB` or `22.5 GiB`.

    Raises:
        RecipeError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*", text)
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None or float(found[1]) == 0:
        raise RecipeError([Problem("--memory", f"{text!r} is no amount of memory", "such as 24GB or 22.5GiB")])
    return int(float(found[1]) * unit)


def choose_device(name: str | None, memory: str | None) -> Device:
    """Return the device that is planned for: a named one, one with so much memory, or this machine's.

    A stated amount alone is a GPU's; with a name, it is that device's.

    Raises:
        RecipeError: there is no such device, or no such amount.
        MachineError: this machine's GPU was meant and cannot be asked.
    """
    stated = parse_memory(memory) if memory is not None else None
    if name is None:
        return _this_machine() if stated is None else Device(f"a GPU of {memory}", "cuda", stated)
    if name == "cpu":
        return Device("this machine's CPU" if stated is None else f"a CPU with {memory}", "cpu", stated or _installed())
    if name not in DEVICES:
        known = ["cpu", *DEVICES]
        hint = f"{nearest(name, known)}; or --memory 24GB for any other"
        raise RecipeError([Problem("--device", f"no device is called {name!r}", hint)])
    device = DEVICES[name]
    return device if stated is None else Device(f"{device.name} of {memory}", "cuda", stated)


def _this_machine() -> Device:
    if not has_gpu():
        return Device("this machine's CPU", "cpu", _installed())
    import torch  # takes seconds, and only a GPU knows how much memory it has

    if not torch.cuda.is_available():
        raise MachineError("there is a GPU that torch cannot use", hint="name what to plan for: --device h100")
    found = torch.cuda.get_device_properties(0)
    return Device(found.name, "cuda", found.total_memory)


def _installed() -> int:
    return int(psutil.virtual_memory().total)
