"""Loads and writes tokenizers; apart from the model, so that processes that only render do not load torch's."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from evaluation.chat_template import with_fixed_date
from evaluation.errors import DataError

WORDS_REMEMBERED = 100_000
"""Whose tokens a byte-pair tokenizer keeps: the library's own 10,000 are soon full, and then nothing is added."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder.

    Raises:
        DataError: the folder holds no tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"no tokenizer could be loaded: {first_line}", where=str(folder)) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by length, never by id, so any token will do
    if tokenizer.is_fast and isinstance(model := tokenizer.backend_tokenizer.model, BPE):
        model._resize_cache(WORDS_REMEMBERED)
    return cast(PreTrainedTokenizerBase, tokenizer)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a tokenizer whose chat templates no longer ask for the day, so that prompts stay those of training."""
    fix_date(tokenizer)
    tokenizer.save_pretrained(str(folder))


def fix_date(tokenizer: PreTrainedTokenizerBase) -> None:
    """Have a tokenizer's chat templates write the date that is trained with, in the place of the day's."""
    found = tokenizer.chat_template
    if isinstance(found, str):
        tokenizer.chat_template = with_fixed_date(found)
    elif isinstance(found, dict):
        tokenizer.chat_template = {name: with_fixed_date(text) for name, text in found.items()}
