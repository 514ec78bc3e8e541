"""Asking a server: what is sent, what is read, and how a refusal is told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from evaluation.conversation import Conversation, Message
from finetune.errors import MachineError
from finetune.server_door import ServerAnswer, ask_server

ASKED = Conversation(messages=(Message(role="system", content="kind"), Message(role="user", content="发烧 🙂")))


class FakeServer(HTTPServer):
    """Remembers what it was asked, and answers what it was told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.asked: list[dict[str, object]] = []
        self.status, self.body = 200, b""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: FakeServer

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        Thread(target=fake.serve_forever, daemon=True).start()
        yield fake
        fake.shutdown()


def completion(text: str | None, tokens: int) -> bytes:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop", "index": 0}
    return json.dumps({"id": "1", "choices": [choice], "usage": {"prompt_tokens": tokens}}).encode()


def test_a_proxy_does_not_stand_between(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    server.body = completion("red", 9)
    assert ask_server(server.address, "tiny", [ASKED], 7) == [ServerAnswer("red", 9, "stop")]


def test_it_is_asked_greedily_and_its_answer_is_read(server: FakeServer) -> None:
    server.body = completion(" red ", 9)
    done: list[int] = []
    assert ask_server(server.address, "tiny", [ASKED, ASKED], 7, done.append) == [ServerAnswer(" red ", 9, "stop")] * 2
    assert server.asked[0] == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "kind"}, {"role": "user", "content": "发烧 🙂"}],
        "max_tokens": 7,
        "temperature": 0,
    }
    assert done == [1, 1]


def test_a_refusal_is_told_in_the_servers_words(server: FakeServer) -> None:
    server.status, server.body = 400, b"pinned to another"
    with pytest.raises(MachineError, match="answers 400: pinned to another"):
        ask_server(server.address, "tiny", [ASKED], 7)


def test_what_is_no_completion_is_refused(server: FakeServer) -> None:
    server.body = b'{"choices": []}'
    with pytest.raises(MachineError, match="no chat completion: usage"):
        ask_server(server.address, "tiny", [ASKED], 7)


def test_nobody_there_is_said() -> None:
    with pytest.raises(MachineError, match="cannot be asked"):
        ask_server("http://127.0.0.1:9", "tiny", [ASKED], 7)
