"""Compiles the functions in C++ beside it once a machine, in a few seconds, where it has GCC."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import which

from pydantic import JsonValue

from evaluation.files import sha256_of_file, sha256_of_json
from finetune.cache import default_cache, kernels_folder
from finetune.compiled_elementwise import CompiledElementwise
from finetune.elementwise import Elementwise, TorchElementwise
from finetune.machine import COMPILER, compiler_version, processor_flags

SOURCES = tuple(
    Path(__file__).with_name(name) for name in ("elementwise.cpp", "attention.cpp", "head.cpp", "low_rank.cpp")
)
HEADERS = tuple(Path(__file__).with_name(name) for name in ("numbers.h", "vectors.h", "tiles.h"))
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-fopenmp")
WIDE = ("-mprefer-vector-width=512",)
"""On x86, where GCC takes half of a register of AVX-512 otherwise: SwiGLU took 1.4 times as long."""
MOST_SECONDS = 120


class NotCompiled(Exception):
    """Says why torch's own functions are used."""


def load_elementwise(*, compiled: bool) -> Elementwise:
    """Return our own functions, compiled for this machine if they are not yet, or torch's.

    Raises:
        NotCompiled: they cannot be compiled or loaded here.
    """
    if not compiled:
        return TorchElementwise()
    library = _compiled(kernels_folder(default_cache()))
    try:
        return CompiledElementwise(library)
    except OSError as error:
        raise NotCompiled(f"what {COMPILER} made of its functions cannot be loaded: {error}") from error


def _compiled(folder: Path) -> Path:
    """Return the library, from the folder or new; its name ends with the hash of its content."""
    flags = (*FLAGS, *(WIDE if platform.machine() == "x86_64" else ()))
    made_of: list[JsonValue] = [
        *(sha256_of_file(file) for file in (*SOURCES, *HEADERS)),
        list(flags),
        compiler_version(),
        platform.machine(),
        *sorted(processor_flags()),
    ]
    key = sha256_of_json(made_of)[:32]
    for library in folder.glob(f"{key}-*.so"):
        if library.stem == f"{key}-{sha256_of_file(library)}":
            return library
        library.unlink()  # a damaged one
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = _compile(Path(place), flags)
        library = folder / f"{key}-{sha256_of_file(made)}.so"
        made.replace(library)
    return library


def _compile(place: Path, flags: tuple[str, ...]) -> Path:
    """Compile and link in two steps, so that no OpenMP library is linked to: torch brings its own, by another name."""
    if sys.platform != "linux" or which(COMPILER) is None:
        raise NotCompiled(f"there is no {COMPILER}" if sys.platform == "linux" else "this is not Linux")
    made = place / "elementwise.so"
    unlinked = [place / f"{source.stem}.o" for source in SOURCES]
    for source, part in zip(SOURCES, unlinked, strict=True):
        if said := _run((COMPILER, *flags, "-c", str(source), "-o", str(part)), place):
            raise NotCompiled(f"{COMPILER} did not compile {source.name}: {said}")
    if said := _run((COMPILER, "-shared", *map(str, unlinked), "-o", str(made)), place):
        raise NotCompiled(f"{COMPILER} did not link them: {said}")
    return made


def _run(command: tuple[str, ...], place: Path) -> str | None:
    """Run a compiler that is told nothing of this process's environment; return what it says if it fails."""
    environment = {"PATH": os.environ.get("PATH", ""), "TMPDIR": str(place), "LC_ALL": "C"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not done in {MOST_SECONDS} s"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
