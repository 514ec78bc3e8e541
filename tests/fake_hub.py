"""A hub on this machine: the routes that huggingface_hub 2.4 asks for, repositories in memory, and faults to order.

Large files (of the suffixes that the hub's own .gitattributes names) go by LFS and are checked by sha256 and size, as
the hub does. A commit is whole or does not happen, and is refused where its parent is not the newest one.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".gguf", ".model")
ALWAYS = 10**9


@dataclass
class Fault:
    """Something that goes wrong on a route, so many times."""

    route: str
    """Part of the method and path, such as `PUT /lfs/` or `/commit/`."""
    status: int = 500
    times: int = ALWAYS
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Close the connection in the middle instead of answering."""
    after: bool = False
    """Do the work first: the answer alone is lost."""
    message: str = "ordered by a test"
    error_code: str = ""
    seconds: float = 0.0
    """Only be slow; the answer is right."""


@dataclass
class Commit:
    """A state of a repository."""

    oid: str
    files: dict[str, bytes]
    message: str


@dataclass
class Repository:
    """A repository with all its commits, the oldest first."""

    name: str
    private: bool
    commits: list[Commit] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """The files of the newest commit."""
        return self.commits[-1].files

    def commit(self, files: dict[str, bytes], message: str) -> Commit:
        """Add a commit."""
        listing = [[name, hashlib.sha256(data).hexdigest()] for name, data in sorted(files.items())]
        oid = hashlib.sha1(json.dumps([len(self.commits), message, listing]).encode()).hexdigest()
        self.commits.append(Commit(oid, files, message))
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        """Find a commit."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.oid == revision), None)


class FakeHub:
    """The server, what it holds and what it was asked."""

    def __init__(self) -> None:
        """Start with no repository, one user and one organization."""
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.faults: list[Fault] = []
        self.owners = {"me", "org"}
        self.spoiled: set[str] = set()
        """Names of files that are served with other bytes than they have."""
        self.tokens: set[str] = {"hf_test"}
        self.lock = threading.RLock()
        self.endpoint = ""

    def add(self, name: str, files: dict[str, bytes], *, private: bool = True) -> Repository:
        """Put a repository there, as somebody else may have."""
        repository = self.repositories[name] = Repository(name, private)
        repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        if files:
            repository.commit({**repository.files, **files}, "by other means")
        return repository

    def asked(self, part: str) -> int:
        """Count the requests whose method and path contain this."""
        return sum(part in request for request in self.requests)

    def fault_on(self, request: str) -> Fault | None:
        """Take one of the ordered faults, if one is ordered for this request."""
        with self.lock:
            for fault in self.faults:
                if fault.route in request and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def serve() -> Iterator[FakeHub]:
    """Run a hub until the block ends."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets, and the second waited 40 ms for an answer

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""

    def _serve(self) -> None:
        request = f"{self.command} {self.path}"
        self.hub.requests.append(request)
        fault = self.hub.fault_on(request)
        if fault is not None and fault.cut and not fault.after:
            self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
            self._cut()
            return
        body = self._body()
        self.hub.bodies.append(body)
        if fault is not None and fault.seconds:
            time.sleep(fault.seconds)
        elif fault is not None and not fault.after:
            self._send_error(fault)
            return
        try:
            with self.hub.lock:
                status, answer, headers = self._answer(urlsplit(self.path).path, body)
        except _Refused as refused:
            coded = {"X-Error-Code": refused.code} if refused.code else {}
            status, answer, headers = refused.status, {"error": str(refused)}, coded
        if fault is not None and fault.after:
            self._cut() if fault.cut else self._send_error(fault)
            return
        self._send(status, answer, headers)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        whole = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _send_error(self, fault: Fault) -> None:
        headers = dict(fault.headers) | ({"X-Error-Code": fault.error_code} if fault.error_code else {})
        self._send(fault.status, {"error": fault.message}, headers)

    def _send(self, status: int, answer: bytes | dict[str, Any] | list[Any], headers: dict[str, str]) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _answer(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        for method, pattern, work in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found is not None and self.command in method:
                return work(self, body, **{key: unquote(value) for key, value in found.groupdict().items()})
        raise _Refused(404, f"no such route: {self.command} {path}")

    def _user(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            raise _Refused(401, "Invalid credentials in Authorization header")

    def _repository(self, repo: str) -> Repository:
        found = self.hub.repositories.get(repo)
        if found is None or (found.private and not self.headers.get("Authorization")):
            raise _Refused(404, "Repository not found", "RepoNotFound")
        return found

    def _at(self, repo: str, revision: str) -> Commit:
        commit = self._repository(repo).at(revision)
        if commit is None:
            raise _Refused(404, "Revision not found", "RevisionNotFound")
        return commit

    def whoami(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        self._user()
        return 200, {"type": "user", "name": "me", "orgs": [{"name": "org"}]}, {}

    def validate(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        errors = card_errors(json.loads(body)["content"])
        if not errors:
            return 200, {"errors": [], "warnings": []}, {}
        if self.headers.get("Accept") == "text/plain":
            return 400, "\n".join(errors).encode(), {}
        return 400, {"errors": [{"message": error} for error in errors], "warnings": []}, {}

    def create(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        self._user()
        asked = json.loads(body)
        owner = asked.get("organization") or "me"
        name = f"{owner}/{asked['name']}"
        if owner not in self.hub.owners:
            raise _Refused(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        if name in self.hub.repositories:
            raise _Refused(409, "You already created this model repo")
        self.hub.add(name, {}, private=asked.get("visibility") == "private" or asked.get("private") is True)
        return 200, {"url": f"{self.hub.endpoint}/{name}", "name": name}, {}

    def info(self, body: bytes, repo: str, revision: str = "main") -> tuple[int, Any, dict[str, str]]:
        commit = self._at(repo, revision)
        siblings = [{"rfilename": name} for name in sorted(commit.files)]
        private = self._repository(repo).private
        return 200, {"id": repo, "sha": commit.oid, "private": private, "siblings": siblings}, {}

    def tree(self, body: bytes, repo: str, revision: str) -> tuple[int, Any, dict[str, str]]:
        entries = [tree_entry(name, data) for name, data in sorted(self._at(repo, revision).files.items())]
        return 200, entries, {}

    def preupload(self, body: bytes, repo: str, revision: str) -> tuple[int, Any, dict[str, str]]:
        self._user()
        there = self._at(repo, revision).files
        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": tree_entry(file["path"], there[file["path"]])["own"] if file["path"] in there else None,
            }
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": answers}, {}

    def batch(self, body: bytes, repo: str) -> tuple[int, Any, dict[str, str]]:
        self._user()
        self._repository(repo)
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.lfs:
                href = f"{self.hub.endpoint}/lfs/{wanted['oid']}?size={wanted['size']}"
                verify = f"{self.hub.endpoint}/{repo}.git/info/lfs/verify"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": verify}}
            objects.append(entry)
        return 200, {"transfer": "basic", "objects": objects}, {}

    def put(self, body: bytes, oid: str) -> tuple[int, Any, dict[str, str]]:
        size = int(parse_qs(urlsplit(self.path).query)["size"][0])
        if self.headers.get("Authorization"):
            raise _Refused(400, "the storage is no place for the hub's token")
        if hashlib.sha256(body).hexdigest() != oid or len(body) != size:
            raise _Refused(400, "the bytes are not those that were announced")
        self.hub.lfs[oid] = body
        return 200, {}, {}

    def verify(self, body: bytes, repo: str) -> tuple[int, Any, dict[str, str]]:
        asked = json.loads(body)
        if len(self.hub.lfs.get(asked["oid"], b"")) != asked["size"]:
            raise _Refused(404, "no such object")
        return 200, {}, {}

    def commit(self, body: bytes, repo: str, revision: str) -> tuple[int, Any, dict[str, str]]:
        self._user()
        repository = self._repository(repo)
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != repository.commits[-1].oid:
            raise _Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repository.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise _Refused(400, f"the object of {value['path']} was not uploaded")
                files[value["path"]] = self.hub.lfs[value["oid"]]
            else:
                assert line["key"] == "deletedFile", line
                del files[value["path"]]
        errors = card_errors(files["README.md"].decode()) if "README.md" in files else []
        if errors:
            raise _Refused(400, "\n".join(errors))
        made = repository.commit(files, lines[0]["value"]["summary"])
        return 200, {"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{made.oid}", "commitOid": made.oid}, {}

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> tuple[int, Any, dict[str, str]]:
        commit = self._at(repo, revision)
        if path not in commit.files:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        data = commit.files[path]
        etag = str(tree_entry(path, data)["own"])
        if path in self.hub.spoiled:
            data = bytes([data[0] ^ 1]) + data[1:]
        return 200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit.oid}


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = (
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", r"/api/repos/create", _Handler.create),
    ("GET", rf"/api/models/{_REPO}", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>[^/]+)", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", _Handler.tree),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>[^/]+)", _Handler.commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("POST", rf"/{_REPO}\.git/info/lfs/verify", _Handler.verify),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.put),
    ("GET HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
)


def tree_entry(name: str, data: bytes) -> dict[str, Any]:
    """Describe a file as the hub's tree does; `own` is the hash that it is compared by."""
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": git, "own": git}
    if name.endswith(LFS_SUFFIXES):
        sha256 = hashlib.sha256(data).hexdigest()
        entry |= {"lfs": {"oid": sha256, "size": len(data), "pointerSize": 130}, "own": sha256}
    return entry


_METADATA = {
    "license": str,
    "license_name": str,
    "license_link": str,
    "library_name": str,
    "pipeline_tag": str,
    "base_model": (str, list),
    "datasets": (str, list),
    "language": (str, list),
    "tags": list,
    "model-index": list,
}


def card_errors(card: str) -> list[str]:
    """Check a card's front matter by what the hub documents of it (https://huggingface.co/docs/hub/model-cards)."""
    found = re.match(r"\A---\r?\n(.*?)\r?\n---\s*?$", card, re.DOTALL | re.MULTILINE)
    if found is None:
        return []
    try:
        metadata = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"the metadata is no YAML: {str(error).splitlines()[0]}"]
    if not isinstance(metadata, dict):
        return ["the metadata is no mapping"]
    errors = [
        f'"{key}" must be {" or ".join(t.__name__ for t in (kind if isinstance(kind, tuple) else (kind,)))}'
        for key, kind in _METADATA.items()
        if key in metadata and not isinstance(metadata[key], kind)
    ]
    if metadata.get("license") == "other" and not metadata.get("license_name"):
        errors.append('"license_name" is required with license: other')
    for key in ("base_model", "datasets"):
        named = metadata.get(key) or []
        for name in [named] if isinstance(named, str) else named:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
                errors.append(f'"{key}" with value "{name}" is not valid. Use a model or data set id')
    index = metadata.get("model-index")
    return errors + (index_errors(index) if isinstance(index, list) else [])


def index_errors(index: list[Any]) -> list[str]:
    """Check `model-index`: names, and results with a task, a data set and metrics that have what they need."""
    errors = []
    for i, model in enumerate(index):
        place = f"model-index[{i}]"
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            errors.append(f'"{place}.name" is required')
            continue
        for j, result in enumerate(model.get("results") or []):
            inside = f"{place}.results[{j}]"
            wanted = {"task": ("type",), "dataset": ("type", "name")}
            for part, keys in wanted.items():
                held = result.get(part) if isinstance(result.get(part), dict) else {}
                errors += [f'"{inside}.{part}.{key}" is required' for key in keys if not isinstance(held.get(key), str)]
            metrics = result.get("metrics")
            if not isinstance(metrics, list) or not metrics:
                errors.append(f'"{inside}.metrics" is required')
                continue
            for k, metric in enumerate(metrics):
                missing = [key for key in ("type", "value") if metric.get(key) is None]
                errors += [f'"{inside}.metrics[{k}].{key}" is required' for key in missing]
    return errors
