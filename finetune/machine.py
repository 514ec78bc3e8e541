"""What this machine is, and how much memory the process has used."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import signal
import subprocess
import sys
from functools import cache
from importlib.metadata import requires, version
from pathlib import Path
from shutil import which

import psutil

from finetune.recipe import Recipe
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

UNDECISIVE = {"pip", "prompt-toolkit", "psutil", "rich", "typer"}
"""Packages that this program needs and that decide no result: they fetch, print and ask."""

INSTRUCTIONS = ("fma", "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")
"""Flags of processors (Linux names) by which torch and oneDNN choose kernels: another kernel rounds otherwise."""

COMPILER = "g++"
"""Compiles the functions that are no matrix products, where it is there (elementwise_library.py)."""

PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide a result."""
    return {name: version(name) for name in PACKAGES}


def all_versions() -> dict[str, str]:
    """Return the versions of this program and of every package it needs that has a say in a result, sorted."""
    needed = (re.match(r"[\w.-]+", line) for line in requires("finetune-recipes") or [] if "extra ==" not in line)
    names = {match[0].lower().replace("_", "-") for match in needed if match} | {"finetune-recipes"}
    return {name: version(name) for name in sorted(names - UNDECISIVE)}


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


def computes_bfloat16() -> bool:
    """Say whether bfloat16 is quick here, without importing torch: a GPU that torch can use, or such a processor.

    A processor without instructions for it took seven times as long as in float32 (docs/log.md).
    """
    return has_gpu() or bool({"avx512_bf16", "amx_bf16"} & processor_flags())


def settle_dtypes(recipe: Recipe, *, bfloat16: bool) -> Recipe:
    """Put a type in the place of each `auto`: what this machine computes quickly in, and for the merge the base's."""
    base = ("bfloat16" if bfloat16 else "float32") if recipe.base.dtype == "auto" else recipe.base.dtype
    merge = base if recipe.merge.dtype == "auto" else recipe.merge.dtype
    return recipe.model_copy(
        update={
            "base": recipe.base.model_copy(update={"dtype": base}),
            "merge": recipe.merge.model_copy(update={"dtype": merge}),
        }
    )


def describe_environment() -> Environment:
    """Describe where the run takes place; nothing in it names a user, a host or a path."""
    import torch

    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        instructions=(torch.backends.cpu.get_cpu_capability(), *(i for i in INSTRUCTIONS if i in processor_flags())),
        compiler=compiler_version(),
        cpu_count=os.cpu_count() or 1,
        torch_threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        driver=_driver() if torch.cuda.is_available() else None,
        versions=versions(),
    )


def _driver() -> str | None:
    try:
        said = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    found = re.search(r"\d+\.\d+(\.\d+)?", said)
    return found[0] if found else None


def has_gpu() -> bool:
    """Say whether there is a GPU that this build of torch could use, without importing torch."""
    build = version("torch")
    if build.endswith("+cpu") or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    if "rocm" in build:
        return Path("/dev/kfd").exists()
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/usr/lib/wsl/lib/libcuda.so.1").exists()


def processor_flags() -> set[str]:
    """Return what the processor is able to, in the words of Linux; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))), set())


@cache
def compiler_version() -> str | None:
    """Return the first line that GCC says of itself, none where there is none."""
    if which(COMPILER) is None:
        return None
    said = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, env={"LC_ALL": "C"}, check=False)
    return said.stdout.partition("\n")[0] or None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (FileNotFoundError, StopIteration):
        return platform.processor() or platform.machine()
