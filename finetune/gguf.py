"""GGUF files (llama.cpp's format) become ordinary model folders once, and are then bases like any other."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from evaluation.files import staged_folder
from finetune.base_hashes import VOUCHER, hash_base_files, is_vouched_for, vouch_for
from finetune.cache import CONVERTER_VERSION, gguf_entry, locked
from finetune.disk_space import SMALL_FILES, require_space
from finetune.errors import DataError
from finetune.gguf_header import check_gguf_header

# What transformers' reader raises on a damaged file: it checks no more than the first four bytes itself.
_UNREADABLE = (ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError, struct.error)
# What the conversion adds about the place it was made in, per file.
_LOCAL_KEYS = {
    "config.json": ("_name_or_path", "_model_name_or_path"),
    "tokenizer_config.json": ("is_local", "local_files_only", "gguf_file", "name_or_path", "_commit_hash"),
}


def convert_gguf(file: Path, content_sha256: str, cache: Path, announce: Callable[[str], None]) -> Path:
    """Return a folder with the file's weights as fp32 safetensors, its tokenizer and chat template.

    Quantized weights are stored as the exact numbers they stand for, so nothing is lost but the small size:
    four bytes a parameter on the disk.

    Raises:
        DataError: it is not a GGUF file, or one of another architecture than LLaMA.
    """
    entry = gguf_entry(cache, f"{content_sha256}-v{CONVERTER_VERSION}")
    with locked(entry):
        if entry.is_dir() and is_vouched_for(entry / VOUCHER, entry.name, hash_base_files(entry)):
            return entry
        check_gguf_header(file)
        announce(f"converting {file.name} to safetensors (once; kept in the cache)")
        model, tokenizer = load_gguf(file.parent, file.name)
        require_space(entry.parent, SMALL_FILES + 4 * model.num_parameters(), f"{file.name} as safetensors", cache)
        with _quiet(), staged_folder(entry) as staging:
            model.save_pretrained(staging)
            tokenizer.save_pretrained(staging)
            for name, keys in _LOCAL_KEYS.items():
                _drop_keys(staging / name, keys)
            vouch_for(staging / VOUCHER, entry.name, hash_base_files(staging))
    return entry


def load_gguf(folder: Path, file_name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model, in fp32 and free of its quantization, and the tokenizer that a GGUF file holds.

    Raises:
        DataError: transformers cannot read it, or its architecture is not LLaMA.
    """
    check_gguf_header(folder / file_name)
    try:
        with _quiet():
            model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file_name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file_name)
    except _UNREADABLE as error:
        first_line = (str(error).splitlines() or [""])[0]
        raise DataError(f"cannot be read as GGUF: {first_line}", where=file_name) from error
    if model.config.model_type != "llama":
        raise DataError(f"its architecture is {model.config.model_type!r}", where=file_name, hint="accepted: llama")
    # The weights are dense by now, but transformers 5.23 still refuses to save anything that came through its
    # GGUF quantizer (GgufHfQuantizer.is_serializable is False); without it the weights are saved bit for bit.
    model.hf_quantizer = None  # type: ignore[assignment]
    del model.config.quantization_config
    return model, tokenizer


def _drop_keys(path: Path, keys: tuple[str, ...]) -> None:
    if path.exists():
        document = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in document.items() if key not in keys}
        path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back transformers' bars and warnings, and restore its settings.

    The dequantizing loop draws its bar with tqdm directly, hence the redirection.
    """
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
