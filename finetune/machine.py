"""What this machine is, and how much memory the process has used."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import sys
from importlib.metadata import version

import psutil

from finetune.records import Environment

PACKAGES = (
    "finetune-recipes",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "trl",
    "tokenizers",
    "safetensors",
)
"""Packages whose versions decide a result."""

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide a result."""
    return {name: version(name) for name in PACKAGES}


def peak_memory_bytes() -> int:
    """Return the largest resident memory that this process has had."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def end_with_parent() -> None:
    """Have the kernel end this process when its parent does, so that a killed run leaves nobody who writes into it.

    Linux alone has this (prctl(2), PR_SET_PDEATHSIG); elsewhere nothing is done.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def describe_environment() -> Environment:
    """Describe where the run takes place; nothing in it names a user, a host or a path."""
    import torch

    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cpu_count=os.cpu_count() or 1,
        torch_threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        versions=versions(),
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (FileNotFoundError, StopIteration):
        return platform.processor() or platform.machine()
