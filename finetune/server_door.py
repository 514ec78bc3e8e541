"""Asks a running OpenAI-compatible server, greedily, and returns what it shows of how it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from pydantic import BaseModel, ConfigDict, ValidationError

from evaluation.chat_text import as_json
from evaluation.conversation import Conversation
from finetune.errors import MachineError

SERVER_PROOF_FILE = "serving.json"
SECONDS = 600.0
"""For one answer."""


@dataclass(frozen=True)
class ServerAnswer:
    """What a server answered to one conversation."""

    text: str
    """As it came; servers do not strip it."""
    prompt_tokens: int
    """Tokens that the server made of the conversation."""
    finish_reason: str
    """`stop` where the model ended it by itself, `length` at the limit."""


class ServerProof(BaseModel):
    """serving.json beside a model: what a running server made of it, compared with plain transformers."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    server: str
    version: str
    model_sha256: str
    """Of the model's folder, as it was served."""
    conversations: int
    """Conversations that the server made as many tokens of as scoring does: all."""
    prompt_tokens: int
    """Tokens of them."""
    answers: int
    """Conversations that were answered greedily by both."""
    answer_tokens: int
    """Most new tokens an answer."""
    equal: int
    """Answers with the same text and the same end."""
    stopped: int
    """Answers that the server's model ended by itself."""
    largest_gap: float | None
    """Where texts part, the model's logit of its own token above the server's; none where all are equal."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Message(_Part):
    role: Literal["assistant"]
    content: str | None


class _Choice(_Part):
    message: _Message
    finish_reason: str


class _Usage(_Part):
    prompt_tokens: int


class _Completion(_Part):
    choices: tuple[_Choice, ...]
    usage: _Usage


def ask_server(
    address: str,
    model: str,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
    advance: Callable[[int], None] = lambda _: None,
) -> list[ServerAnswer]:
    """Have a server answer prompts at temperature 0; `address` is without /v1, as in http://127.0.0.1:8000.

    It is asked directly, whatever proxy the environment names.

    Raises:
        MachineError: it cannot be reached, refuses, or answers something else than a chat completion.
    """
    answers = []
    for conversation in conversations:
        request = {
            "model": model,
            "messages": [as_json(message) for message in conversation.messages],
            "max_tokens": max_new_tokens,
            "temperature": 0,
        }
        if conversation.tools:
            request["tools"] = list(conversation.tools)
        completion = _post(f"{address}/v1/chat/completions", json.dumps(request).encode())
        [choice] = completion.choices
        answers.append(ServerAnswer(choice.message.content or "", completion.usage.prompt_tokens, choice.finish_reason))
        advance(1)
    return answers


def describe_server_proof(proof: ServerProof) -> str:
    """Say in one line what was compared."""
    gap = "" if proof.largest_gap is None else f", parted at gaps of at most {proof.largest_gap:.3f} logits"
    return (
        f"{proof.server} {proof.version}: {proof.conversations} conversations of {proof.prompt_tokens:,} tokens, "
        f"{proof.equal}/{proof.answers} answers equal{gap}"
    )


def _post(url: str, body: bytes) -> _Completion:
    request = Request(url, body, {"Content-Type": "application/json"}, method="POST")
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=SECONDS) as answer:
            return _Completion.model_validate_json(answer.read())
    except HTTPError as error:
        said = error.read(500).decode(errors="replace")
        raise MachineError(f"the server answers {error.code}: {said}", where=url) from error
    except (URLError, OSError) as error:
        raise MachineError(f"the server cannot be asked: {error}", where=url) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise MachineError(f"this is no chat completion: {place}: {first['msg']}", where=url) from error
