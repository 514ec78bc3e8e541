"""The sizes of the base that a recipe names, from a config.json on this disk or from the table of published ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune.cache import CONVERTER_VERSION, gguf_entry, hub_folder
from finetune.errors import DataError
from finetune.model_shape import ModelShape, read_shape
from finetune.published_shapes import PUBLISHED, published_shape
from finetune.recipe import Base


@dataclass(frozen=True)
class KnownBase:
    """A base's sizes, and where they are from."""

    shape: ModelShape
    said: str
    """Where the sizes are from."""
    stored_bytes: int
    """Size of its files; of 16-bit weights where they are not here."""


def find_base(base: Base, cache: Path) -> KnownBase:
    """Find the sizes of a base without fetching or reading weights.

    Raises:
        DataError: it is neither on this disk nor in the table.
    """
    folder = _folder_here(base, cache)
    if folder is not None:
        stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        shape = read_shape(folder / "config.json")
        return KnownBase(shape, "its config.json", stored or 2 * shape.parameters)
    known = published_shape(base.model)
    if known is None:
        raise DataError(
            "its sizes are not known here, and planning fetches nothing",
            where=base.model,
            hint="`finetune prepare` fetches it; or name a folder with its config.json: --set base.model=FOLDER. "
            f"Known by name: {', '.join(PUBLISHED)}",
        )
    name, shape = known
    return KnownBase(shape, f"the published sizes of {name}", 2 * shape.parameters)


def _folder_here(base: Base, cache: Path) -> Path | None:
    """Return the folder of a base that is on this disk: as named, converted from GGUF, or fetched from the hub."""
    snapshots = hub_folder(cache) / f"models--{base.model.replace('/', '--')}" / "snapshots"
    places = [Path(base.model), *sorted(snapshots.glob("*"))]
    if base.sha256 is not None:
        places.append(gguf_entry(cache, f"{base.sha256}-v{CONVERTER_VERSION}"))
    return next((place for place in places if (place / "config.json").is_file()), None)
