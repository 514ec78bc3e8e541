"""The hub for readers, on this machine: it answers as huggingface.co does where a model or data set is fetched."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40
REPOSITORIES = {
    "models/org/good": {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"pickle",
        "modeling.py": b"code",
        "tokenizer.model": b"pieces",
    },
    "models/org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    "datasets/org/rows": {
        "README.md": b"",
        "data/train-00000-of-00002.jsonl": b'{"text": "a"}\n',
        "data/train-00001-of-00002.jsonl": b'{"text": "b"}\n',
        "data/test-00000-of-00001.jsonl": b'{"text": "c"}\n',
    },
}
REFUSED = {
    "models/org/gated": (403, "GatedRepo"),
    "models/org/absent": (404, "RepoNotFound"),
    "models/org/broken": (500, ""),
    "models/org/old": (404, "RevisionNotFound"),
}


def etag(content: bytes) -> str:
    """Hash a small file as the hub does: as git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """The few routes that are needed to read a repository."""

    requests: list[str]

    def do_HEAD(self) -> None:
        """Answer without a body."""
        self._answer(with_body=False)

    def do_GET(self) -> None:
        """Answer with a body."""
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def _answer(self, *, with_body: bool) -> None:
        type(self).requests.append(self.path)
        kind, repo, rest = self._parts()
        status, code = REFUSED.get(f"{kind}/{repo}", (200, ""))
        files = REPOSITORIES.get(f"{kind}/{repo}", {})
        if status != 200:
            self._send(status, b"{}", {"X-Error-Code": code} if code else {}, with_body=with_body)
        elif rest.startswith("tree/"):
            listing = [self._entry(name, content) for name, content in files.items()]
            self._send(200, json.dumps(listing).encode(), {}, with_body=with_body)
        elif "/resolve/" in self.path:
            content = files[rest.split("/", 2)[2]]
            headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": COMMIT}
            self._send(200, content, headers, with_body=with_body)
        else:
            info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            self._send(200, json.dumps(info).encode(), {}, with_body=with_body)

    def _parts(self) -> tuple[str, str, str]:
        path = self.path.split("?")[0].lstrip("/").removeprefix("api/")
        match = re.fullmatch(r"(?:(models|datasets)/)?([^/]+/[^/]+)(?:/(.*))?", path)
        assert match is not None
        return match[1] or "models", match[2], match[3] or ""

    @staticmethod
    def _entry(name: str, content: bytes) -> dict[str, object]:
        return {"type": "file", "path": name, "size": len(content), "oid": etag(content)}

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


@contextmanager
def serving() -> Iterator[str]:
    """Run the server and yield its address."""
    Hub.requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
