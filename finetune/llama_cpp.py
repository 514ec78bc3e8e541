"""llama.cpp itself, where it is installed: what it makes of a GGUF file's tokens, and how it goes on from a prompt."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.errors import DataError, MachineError

if TYPE_CHECKING:
    from llama_cpp import Llama

PACKAGE = "llama-cpp-python"

_ERROR = 4
"""GGML_LOG_LEVEL_ERROR of ggml.h."""


def has_llama_cpp() -> bool:
    """Say whether llama.cpp is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


def require_llama_cpp() -> str:
    """Return the version of the package that holds llama.cpp.

    Raises:
        MachineError: it is not installed.
    """
    if not has_llama_cpp():
        raise MachineError(
            "llama.cpp is not installed",
            hint="pip install 'finetune-recipes[llama-cpp]' compiles it: about a quarter of an hour on two cores, "
            "with a C++ compiler",
        )
    return version(PACKAGE)


class LlamaCpp:
    """A GGUF file that llama.cpp has open, on the CPU."""

    def __init__(self, llama: Llama) -> None:
        """Take what `open_in_llama_cpp` opened."""
        self._llama = llama

    def tokens(self, text: str, *, as_text_begins: bool) -> list[int]:
        """Tokenize with the file's own vocabulary; control tokens that are written out become themselves.

        `as_text_begins` puts before it (and behind it) what the file says that a text begins with.
        """
        return list(self._llama.tokenize(text.encode(), add_bos=as_text_begins, special=True))

    def continue_greedily(self, ids: Sequence[int], count: int, stops: Sequence[int]) -> list[int]:
        """Return the most probable next tokens, up to a stop token (included) or the count."""
        found: list[int] = []
        self._llama.reset()
        for token in self._llama.generate(list(ids), temp=0.0, repeat_penalty=1.0):
            found.append(int(token))
            if len(found) == count or token in stops:
                break
        return found


@contextmanager
def open_in_llama_cpp(file: Path, lora: Path | None = None, threads: int = 1, context: int = 512) -> Iterator[LlamaCpp]:
    """Open a GGUF file, with an adapter file on it where one is given; prompts and answers have to fit the context.

    Keys and values are kept in fp32 (llama.cpp's own default is fp16), so that what differs is the file's doing.

    Raises:
        MachineError: llama.cpp is not installed.
        DataError: it cannot load the file.
    """
    require_llama_cpp()
    from llama_cpp import GGML_TYPE_F32, Llama

    said, _ = _listen()
    said.clear()
    try:
        with _weights_as_stored():
            llama = Llama(
                str(file),
                lora_path=str(lora) if lora else None,
                n_ctx=context,
                n_threads=threads,
                n_threads_batch=threads,
                type_k=GGML_TYPE_F32,
                type_v=GGML_TYPE_F32,
                verbose=False,
            )
    except (RuntimeError, ValueError) as error:
        reason = said[-1] if said else str(error)
        raise DataError(f"llama.cpp cannot load it: {reason}", where=str(lora or file)) from error
    # llama-cpp-python 0.3.36 takes the null pointer of an adapter that could not be loaded for an adapter, and answers
    # as the base does; 0.3.47 has no lora_path any more and ignores it, which is why the extra ends before.
    if lora is not None and not llama._lora_adapter:
        llama.close()
        raise DataError(f"llama.cpp cannot load it: {said[-1] if said else 'no reason given'}", where=str(lora))
    try:
        yield LlamaCpp(llama)
    finally:
        llama.close()


@contextmanager
def _weights_as_stored() -> Iterator[None]:
    """Have llama.cpp compute on weights as the file has them, and not on copies laid out anew for this processor.

    On processors with AMX the copies of quantized weights end the process with SIGSEGV:
    https://github.com/ggml-org/llama.cpp/issues/20824, open when 0.3.36 was current. `Llama` of llama-cpp-python has no
    argument for it, so the defaults that it starts from are changed.
    """
    from llama_cpp import llama_cpp

    defaults = llama_cpp.llama_model_default_params

    def as_stored() -> llama_cpp.llama_model_params:
        parameters: llama_cpp.llama_model_params = defaults()
        parameters.use_extra_bufts = False
        return parameters

    llama_cpp.llama_model_default_params = as_stored
    try:
        yield
    finally:
        llama_cpp.llama_model_default_params = defaults


@cache
def _listen() -> tuple[list[str], Callable[..., None]]:
    """Keep what llama.cpp reports as an error instead of letting it print; returned with what has to stay alive."""
    from llama_cpp import llama_log_callback, llama_log_set

    said: list[str] = []

    def keep(level: int, text: bytes, _: object) -> None:
        if level == _ERROR:
            said.append(text.decode(errors="replace").strip())

    callback = llama_log_callback(keep)
    llama_log_set(callback, None)
    return said, callback
