"""Looks at a stranger's model folder before transformers does: which files it would read, and how large a model make.

transformers reads any file that an index names, pickles too, and builds the layers that a configuration speaks of
before it looks at the weights (transformers/modeling_utils.py, 5.23).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evaluation.errors import DataError

INDEX_FILE = "model.safetensors.index.json"
_SIZES = {
    "num_hidden_layers": 1_000,
    "hidden_size": 200_000,
    "intermediate_size": 2_000_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "head_dim": 100_000,
    "vocab_size": 10_000_000,
    "max_position_embeddings": 1_000_000_000,
}
"""Far above any model's; what is stated has to be a whole number from 1 to this."""
_LARGEST_JSON = 100_000_000


def check_model_files(folder: Path) -> None:
    """Check that a folder's weights are safetensors in it, and that its configuration speaks of a model that can be.

    Raises:
        DataError: names the file and what in it is not accepted.
    """
    if not any(folder.glob("*.safetensors")):
        raise DataError(
            "no *.safetensors weights in this folder",
            where=str(folder),
            hint="pickled weights are not read; convert them with transformers' save_pretrained",
        )
    if (folder / INDEX_FILE).is_file():
        check_shards(read_json_object(folder / INDEX_FILE), folder, str(folder / INDEX_FILE))
    config = read_json_object(folder / "config.json")
    for name, largest in _SIZES.items():
        value = config.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= largest):
            raise DataError(f"{name} is {str(value)[:40]}", where=str(folder / "config.json"), hint=f"1 to {largest:,}")
    for name in ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            read_json_object(folder / name)


def check_shards(index: dict[str, Any], folder: Path, where: str) -> None:
    """Check that an index names files of safetensors beside it and nothing else.

    Raises:
        DataError: names the first that is something else, or that is missing.
    """
    shards = index.get("weight_map")
    if not isinstance(shards, dict):
        raise DataError("`weight_map` is not an object", where=where)
    for shard in sorted({str(name) for name in shards.values()}):
        if not shard.endswith(".safetensors") or Path(shard).name != shard:
            raise DataError(f"the index names {shard!r}, which is no file of safetensors in this folder", where=where)
        if not (folder / shard).is_file():
            raise DataError(f"the index names {shard!r}, which is not there", where=where)


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        DataError: there is none, it is damaged or nested without end, or it holds something else.
    """
    try:
        if file.stat().st_size > _LARGEST_JSON:
            raise DataError(f"{file.name} is larger than 100 MB", where=str(file))
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"no {file.name} in this folder", where=str(file.parent)) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.name} is not JSON: {error}", where=str(file)) from error
    if not isinstance(document, dict):
        raise DataError(f"{file.name} does not hold an object", where=str(file))
    return document
