"""A thousand conversations through every door, with the real base's tokenizer and template: the same token ids.

Which ids a conversation becomes is a matter of the tokenizer and the template alone, so the model behind them is a
tiny one with the real base's vocabulary: a server answers a thousand prompts in a minute. A server shows how many
tokens it made of a prompt, and not which; llama.cpp's and the folders' ids are compared one by one.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_model import build_model
from tiny_runs import HUNG_SECONDS

from evaluation.rendering import Renderer
from evaluation.tokenizer import load_tokenizer, save_tokenizer
from finetune.bases import resolve_base
from finetune.cache import default_cache
from finetune.door_conversations import door_conversations
from finetune.doors import Door, compare_doors, folder_door, tokenizer_door, training_door
from finetune.errors import MachineError
from finetune.gguf import load_gguf
from finetune.gguf_export import export_gguf
from finetune.llama_cpp import has_llama_cpp, open_in_llama_cpp
from finetune.recipe_file import load_recipe
from finetune.server_door import ask_server
from finetune.server_process import free_port

pytestmark = pytest.mark.slow
CONVERSATIONS = 1000


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA with the tokenizer of the quick start's base."""
    try:
        base = resolve_base(load_recipe("icd10-quickstart", []).recipe.base, default_cache(), lambda _: None)
    except MachineError as error:
        pytest.skip(f"the base could not be fetched: {error}")
    folder = tmp_path_factory.mktemp("doors") / "smollm2-tiny"
    tokenizer = load_tokenizer(base.folder)
    build_model(len(tokenizer)).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def renderer(merged: Path) -> Renderer:
    return Renderer(load_tokenizer(merged))


def test_token_ids_are_those_of_training_at_every_door(merged: Path, renderer: Renderer, tmp_path: Path) -> None:
    conversations = list(door_conversations(CONVERSATIONS))
    file = tmp_path / "model.gguf"
    export_gguf(merged, file, "f32", "doors")
    doors = [
        training_door(renderer),
        folder_door("merged folder", merged),
        tokenizer_door("GGUF, transformers", load_gguf(file.parent, file.name)[1]),
    ]
    if not has_llama_cpp():
        found = compare_doors(renderer, doors, conversations)
        assert {door.conversations for door in found} == {CONVERSATIONS}
        pytest.skip("llama.cpp is not installed (finetune-recipes[llama-cpp]); the other doors are the same")
    with open_in_llama_cpp(file) as llama:
        text = Door(
            "GGUF, llama.cpp",
            lambda one: llama.tokens(renderer.chat_text(one.messages, ask=True), as_text_begins=False),
        )
        found = compare_doors(renderer, [*doors, text], conversations)
    assert {door.conversations for door in found} == {CONVERSATIONS}
    assert len({door.tokens for door in found}) == 1


@pytest.mark.skipif(
    find_spec("fastapi") is None, reason="transformers' server is not installed (finetune-recipes[serve])"
)
def test_a_server_makes_as_many_tokens_of_each_prompt(merged: Path, renderer: Renderer) -> None:
    conversations = list(door_conversations(CONVERSATIONS))
    with serving(merged) as address:
        answers = ask_server(address, merged.name, conversations, 1)
    counts = [len(renderer.prompt(conversation)) for conversation in conversations]
    assert [answer.prompt_tokens for answer in answers] == counts


@contextmanager
def serving(model: Path) -> Iterator[str]:
    """Serve a model folder with `finetune serve`, from when it answers until the block ends."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "finetune.cli",
        "serve",
        str(model),
        "--server",
        "transformers",
        "--port",
        str(port),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + HUNG_SECONDS
            while not answers_at(f"{address}/health"):
                assert child.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield address
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(timeout=HUNG_SECONDS)


def answers_at(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
