"""A tokenizer.json becomes the vocabulary of a GGUF file: byte-level BPE as in LLaMA 3, or LLaMA 2's byte fallback.

GGUF names the way text is cut before BPE by a word that llama.cpp knows; the word that says what the tokenizer does
is looked up here, and a tokenizer that no word describes is refused, since its tokens would be others there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from gguf import GGUFWriter, TokenType
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from evaluation.tokenizer import load_tokenizer
from finetune.errors import DataError

LLAMA3_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The regular expression of LLaMA 3's tokenizer, by which it is known."""


_ACCEPTED = "accepted: the tokenizers of LLaMA 2, LLaMA 3, SmolLM and GPT-2"


class AddedToken(BaseModel):
    """A token beside the BPE vocabulary."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: int
    content: str
    special: bool = False


class BpeModel(BaseModel):
    """The vocabulary and its merges."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: Literal["BPE"]
    vocab: dict[str, int]
    merges: list[str] | list[tuple[str, str]]
    byte_fallback: bool = False


class TokenizerFile(BaseModel):
    """What of tokenizer.json a GGUF file states."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    added_tokens: list[AddedToken] = []
    normalizer: JsonValue = None
    pre_tokenizer: JsonValue = None
    model: BpeModel


def add_tokenizer(writer: GGUFWriter, folder: Path, rows: int) -> None:
    """Write vocabulary, merges, special tokens and chat template; rows without a token are filled as unused.

    Raises:
        DataError: there is no tokenizer.json, or the format cannot say what it does.
    """
    file = _read(folder)
    tokens, kinds = _tokens(file, rows, str(folder))
    if file.model.byte_fallback:
        writer.add_add_space_prefix(_prepends(file.normalizer, str(folder)))
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        # Their ids are in the order of their merges, which is what llama.cpp's scores have to say.
        writer.add_token_scores([-float(number) for number in range(rows)])
    else:
        if file.normalizer is not None:
            raise DataError("its tokenizer changes text before it cuts it", where=str(folder), hint=_ACCEPTED)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_cut(file.pre_tokenizer, str(folder)))
        writer.add_token_merges([_spelled(merge) for merge in file.model.merges])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    _add_special(writer, folder)


def _add_special(writer: GGUFWriter, folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for token, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
    ):
        if token is not None:
            add(int(token))
    probe = tokenizer("a").input_ids
    writer.add_add_bos_token(bool(probe) and probe[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(probe) and probe[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _read(folder: Path) -> TokenizerFile:
    try:
        return TokenizerFile.model_validate_json((folder / "tokenizer.json").read_bytes())
    except FileNotFoundError as error:
        raise DataError("no tokenizer.json in it", where=str(folder)) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"tokenizer.json: {place}: {first['msg']}", where=str(folder), hint="accepted: BPE, as LLaMA has it"
        ) from error


def _tokens(file: TokenizerFile, rows: int, where: str) -> tuple[list[str], list[TokenType]]:
    tokens = [f"[PAD{number}]" for number in range(rows)]
    kinds = [TokenType.UNUSED] * rows
    largest = max([*file.model.vocab.values(), *(token.id for token in file.added_tokens)])
    if largest >= rows:
        raise DataError(f"its tokens go up to {largest}, its embedding has {rows} rows", where=where)
    for text, number in file.model.vocab.items():
        is_byte = file.model.byte_fallback and len(text) == 6 and text.startswith("<0x")
        tokens[number], kinds[number] = text, TokenType.BYTE if is_byte else TokenType.NORMAL
    for token in file.added_tokens:
        kind = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        tokens[token.id], kinds[token.id] = token.content, kind
    return tokens, kinds


def _cut(pre_tokenizer: JsonValue, where: str) -> str:
    """Name the way that text is cut before BPE, in llama.cpp's words."""
    steps = pre_tokenizer if isinstance(pre_tokenizer, dict) else {}
    parts = steps.get("pretokenizers", [steps])
    described = [_described(part) for part in parts] if isinstance(parts, list) else []
    match described:
        case ["bytes"]:
            return "gpt-2"
        case ["digits", "bytes"]:
            return "smollm"
        case ["llama3", "bytes as they are"]:
            return "llama-bpe"
    raise DataError(
        "its tokenizer cuts text in a way that GGUF has no word for here",
        where=where,
        hint=f"{_ACCEPTED}; its own is {json.dumps(pre_tokenizer, ensure_ascii=False)[:120]}",
    )


def _prepends(normalizer: JsonValue, where: str) -> bool:
    """Say whether a text gets a space before it; anything but that, and spaces spelled as ▁, is refused."""
    steps = normalizer if isinstance(normalizer, dict) else {}
    parts = steps.get("normalizers", [steps])
    kinds = [part.get("type") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    if kinds not in (["Prepend", "Replace"], ["Replace"]):
        raise DataError("its tokenizer changes text before it cuts it", where=where, hint=_ACCEPTED)
    return kinds[0] == "Prepend"


def _described(part: JsonValue) -> str:
    if not isinstance(part, dict):
        return "unknown"
    match part.get("type"):
        case "ByteLevel" if not part.get("add_prefix_space"):
            return "bytes" if part.get("use_regex", True) else "bytes as they are"
        case "Digits" if part.get("individual_digits"):
            return "digits"
        case "Split" if part.get("pattern") == {"Regex": LLAMA3_CUT}:
            return "llama3"
    return "unknown"


def _spelled(merge: str | tuple[str, str]) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)
