"""Whether the disk has room for what a stage will write, worked out before it starts, and what could be freed."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import get_args

from finetune.errors import DataError, MachineError
from finetune.recipe import Adapter, Contender, Projection, Recipe
from finetune.run_directory import RunDirectory, Stage

MEBIBYTE = 2**20
SMALL_FILES = 16 * MEBIBYTE
"""Tokenizer, configurations, reports, metrics: what every stage writes beside the large files."""
BYTES_PER_SOURCE_BYTE = 8
"""A row's text as collected, in its chunk, in the examples (two numbers of four bytes a token) and in the samples."""
BYTES_PER_ROW = 1200
"""Keys, names and template tokens of a row; a thousand were measured with rows of 45 bytes (docs/log.md)."""
BYTES_PER_PACKED_BYTE = 10
"""The same rows gzipped, or as Parquet, take about so many times less."""
ADAPTER_COPIES = 14
"""Of the fp32 adapter at once: itself, the one that is kept when training is stopped, and three checkpoints (the one
before, the newest, one being written) of the weights, their two moments in AdamW, and the best so far."""
BYTES_PER_SAMPLE = 4096
"""An answer with its prompt, for each contender."""
EVERY_CONTENDER = get_args(Contender)
DTYPE_BYTES = {"float32": 4, "f32": 4, "bfloat16": 2, "float16": 2}
LARGEST_HEADER = 100 * MEBIBYTE
"""That safetensors allows."""


@dataclass(frozen=True)
class Sizes:
    """What a run's sizes follow from."""

    recipe: Recipe
    run: RunDirectory
    base_folder: Path
    sources: tuple[Path, ...]


def bytes_for(stage: Stage, sizes: Sizes) -> int:
    """Estimate the bytes that a stage writes, on the high side."""
    recipe = sizes.recipe
    match stage:
        case "prepare":
            return SMALL_FILES + sum(_prepared_size(path) for path in sizes.sources)
        case "train":
            return SMALL_FILES + 4 * ADAPTER_COPIES * adapter_parameters(
                recipe.adapter, weight_shapes(sizes.base_folder)
            )
        case "merge":
            return weights_bytes(sizes.base_folder, recipe.merge.dtype)
        case "evaluate":
            samples = sizes.run.data / "held_out.jsonl"
            count = samples.read_bytes().count(b"\n") if samples.exists() else 0
            size = samples.stat().st_size if samples.exists() else 0
            return SMALL_FILES + len(recipe.evaluation.contenders or EVERY_CONTENDER) * (
                size + count * BYTES_PER_SAMPLE
            )
        case "report":
            return SMALL_FILES


def require_space(folder: Path, needed: int, what: str, cache: Path | None = None) -> None:
    """Refuse to begin what would fill the disk.

    Raises:
        MachineError: less is free than is needed; says what could be freed.
    """
    free = free_bytes(folder)
    if needed > free:
        raise MachineError(
            f"{what} needs about {size_text(needed)} of disk, and {size_text(free)} are free",
            where=str(folder),
            hint=what_to_free(folder, cache),
        )


def weights_bytes(folder: Path, dtype: str) -> int:
    """Return what a model's weights take in a type; the narrower ones of GGUF take no more than bfloat16."""
    return SMALL_FILES + sum(map(prod, weight_shapes(folder).values())) * DTYPE_BYTES.get(dtype, 2)


def free_bytes(folder: Path) -> int:
    """Return what is free where a folder is or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def what_to_free(folder: Path, cache: Path | None) -> str:
    """Name what takes room and is not needed, with its size, the largest first."""
    parts = {path: folder_size(path) for path in cache.iterdir() if path.is_dir()} if cache and cache.is_dir() else {}
    largest = sorted(((size, path) for path, size in parts.items() if size >= MEBIBYTE), reverse=True)[:3]
    named = [f"{path} ({size_text(size)}, made or fetched again when it is needed)" for size, path in largest]
    runs = [path for path in folder.absolute().parent.glob("*/recipe.lock.json") if path.parent != folder.absolute()]
    others = sum(folder_size(path.parent) for path in runs)
    if others >= MEBIBYTE:
        named.append(f"{len(runs)} other runs in {folder.absolute().parent} ({size_text(others)})")
    return "free some: " + "; ".join(named) if named else "free some of this disk, or use --out on another one"


def folder_size(folder: Path) -> int:
    """Add up the files below a folder, each once however many names it has."""
    seen: dict[tuple[int, int], int] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.lstat(os.path.join(parent, name))  # noqa: PTH118  # Path is slow for a million
            except FileNotFoundError:
                continue
            seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


def size_text(size: int) -> str:
    """Spell bytes as MiB below one GiB, and as GiB from there."""
    return f"{size / MEBIBYTE:.0f} MiB" if size < 1024 * MEBIBYTE else f"{size / 1024 / MEBIBYTE:.1f} GiB"


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a model's tensors from the headers of its files.

    The format: https://huggingface.co/docs/safetensors/index#format

    Raises:
        DataError: a file is not safetensors.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
            if length > LARGEST_HEADER:
                raise DataError("not a safetensors file", where=str(path))
            try:
                header = json.loads(file.read(length))
            except ValueError as error:
                raise DataError("not a safetensors file", where=str(path)) from error
        shapes |= {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    return shapes


def adapter_parameters(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Count the parameters of an adapter for weights of these shapes."""
    targets = get_args(Projection) if adapter.targets == "all-linear" else adapter.targets
    endings = tuple(f".{target}.weight" for target in targets)
    matrices = [shape for name, shape in shapes.items() if name.endswith(endings) and len(shape) == 2]
    return sum(adapter.rank * (rows + columns) + rows for rows, columns in matrices)


def _prepared_size(path: Path) -> int:
    size = folder_size(path) if path.is_dir() else path.stat().st_size
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    if any(one.suffix in (".gz", ".parquet") for one in files):
        return size * BYTES_PER_PACKED_BYTE * BYTES_PER_SOURCE_BYTE
    return size * BYTES_PER_SOURCE_BYTE + sum(map(_count_lines, files)) * BYTES_PER_ROW


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(MEBIBYTE), b""))
