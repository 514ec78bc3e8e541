"""Whatever goes wrong at the hub, a push leaves the old state or the new one, says what to do, and can be repeated."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fake_hub import ALWAYS, FakeHub, Fault, serve
from huggingface_hub import constants
from staged_folder import CARD, restage, write_staged
from tiny_runs import Outcome, finetune_command

from finetune import pushing
from finetune.publish_check import CheckJob, CheckResult, check_published, judged

pytestmark = pytest.mark.slow  # a server and a repeated push each

TOKEN = "hf_canaryCanaryCanaryCanaryCanary"
REPO = "org/tiny"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A staged folder, to be copied."""
    return write_staged(tmp_path_factory.mktemp("made")).folder


@pytest.fixture
def staged(made: Path, tmp_path: Path) -> Path:
    """A staged folder of this test's own."""
    return shutil.copytree(made, tmp_path / "staged")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make waiting cost nothing, and keep how long it would have been."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, waits: list[float], tmp_path: Path) -> Iterator[FakeHub]:
    """A hub that this process takes for the real one; the comparison is made without another process."""
    with serve() as server:
        server.tokens = {TOKEN}
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        resolve = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", resolve)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(pushing, "check_in_fresh_process", check_here)
        yield server
        assert not any(TOKEN.encode() in body for body in server.bodies), "the token was sent as content"
        assert not any(TOKEN in request for request in server.requests), "the token was sent in an address"


def check_here(job: CheckJob) -> CheckResult:
    return judged(check_published(job), job)


def push(folder: Path, *options: str, to: str = REPO) -> Outcome:
    outcome = finetune_command("push", str(folder), "--to", to, *options)
    assert TOKEN not in outcome.stdout + outcome.stderr
    assert "fault of the program" not in outcome.stderr
    assert "Traceback" not in outcome.stderr
    return outcome


def flat(outcome: Outcome) -> str:
    return " ".join(outcome.stderr.split())


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def held(hub: FakeHub, repo: str = REPO) -> dict[str, bytes]:
    """The files of a repository but the hub's own; none where there is no repository."""
    if repo not in hub.repositories:
        return {}
    return {name: data for name, data in hub.repositories[repo].files.items() if name != ".gitattributes"}


def change(folder: Path) -> None:
    (folder / "README.md").write_text(CARD + "Changed.\n", encoding="utf-8")
    (folder / "NOTICE").write_text("new\n", encoding="utf-8")
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    (folder / "LICENSE").unlink()
    restage(folder)


FINAL = {
    "401": (Fault("/api/repos/create", 401), "does not know this token.*hf auth login"),
    "403": (Fault("/api/repos/create", 403), "may not write there.*hf auth login"),
    "403 at the commit": (Fault("/commit/", 403), "may not write there"),
    "404": (Fault("/preupload/", 404), "no such place"),
    "409": (Fault("/api/repos/create", 409), "the name is taken"),
    "412 for ever": (Fault("/commit/", 412), "somebody else changes the repository"),
    "413": (Fault("/commit/", 413), "too large"),
    "429 for an hour": (Fault("/preupload/", 429, headers={"Retry-After": "3600"}), "asks to wait 3600 seconds"),
    "429 for ever": (Fault("/preupload/", 429, headers={"Retry-After": "2"}), "status 429 after 4 tries"),
    "500 for the card": (Fault("validate-yaml", 500), "status 500 after 4 tries"),
    "500 for the repository": (Fault("GET /api/models/", 500), "status 500 after 4 tries"),
    "500 at creation": (Fault("/api/repos/create", 500), "status 500 after 4 tries"),
    "503 before the upload": (Fault("/preupload/", 503), "status 503 after 4 tries"),
    "500 for the objects": (Fault("/objects/batch", 500), "status 500 after 4 tries"),
    "500 for an upload": (Fault("PUT /lfs/", 500), "status 500 after 4 tries"),
    "403 for an upload": (Fault("PUT /lfs/", 403), "adapter_model.safetensors.*may not write there"),
    "500 after an upload": (Fault("/lfs/verify", 500), "status 500 after 4 tries"),
    "500 for the commit": (Fault("/commit/", 500), "status 500"),
    "cut in an upload": (Fault("PUT /lfs/", cut=True), "the connection was cut 4 times"),
    "cut before the commit": (Fault("/commit/", cut=True), "the connection to the hub failed"),
    "cut everywhere": (Fault("", cut=True), "the connection to the hub failed"),
}


QUICK = (
    "401",
    "403 at the commit",
    "409",
    "429 for ever",
    "500 for an upload",
    "500 for the commit",
    "cut in an upload",
)
CASES = [
    pytest.param(
        fault, message, earlier, id=name, marks=[] if earlier == (name != "401") and short else pytest.mark.slow
    )
    for name, (fault, message) in FINAL.items()
    for short in [name in QUICK]
    for earlier in (False, True)
    if not (earlier and "create" in fault.route)
]


@pytest.mark.parametrize(("fault", "message", "earlier"), CASES)
def test_what_does_not_pass_publishes_nothing_and_the_repetition_completes(
    fault: Fault, message: str, earlier: bool, staged: Path, hub: FakeHub
) -> None:
    before: dict[str, bytes] = {}
    if earlier:
        assert push(staged).status == 0
        before = content(staged)
        change(staged)
    hub.faults = [replace(fault, times=ALWAYS)]
    failed = push(staged)
    assert failed.status == 6, failed.stderr
    assert re.search(message, flat(failed)), failed.stderr
    assert "nothing was published" in flat(failed) or "asks to wait" in flat(failed) or "try again" in flat(failed)
    assert held(hub) == before

    hub.faults = []
    again = push(staged)
    assert again.status == 0, again.stderr
    assert held(hub) == content(staged)
    assert len(hub.repositories[REPO].commits) == (3 if earlier else 2), "one commit and no other"


PASSING = {
    "429": Fault("/preupload/", 429, times=2, headers={"Retry-After": "3"}),
    "500 at creation": Fault("/api/repos/create", 500, times=1),
    "500 for an upload": Fault("PUT /lfs/", 500, times=2),
    "cut in an upload": Fault("PUT /lfs/", cut=True, times=2),
    "500 for the commit": Fault("/commit/", 500, times=1),
    "500 and the commit was made": Fault("/commit/", 500, times=1, after=True),
    "cut and the commit was made": Fault("/commit/", cut=True, times=1, after=True),
    "503 for the download": Fault("/resolve/", 503, times=1),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_passes_is_waited_for_and_makes_one_commit(
    fault: Fault, staged: Path, hub: FakeHub, waits: list[float]
) -> None:
    hub.faults = [replace(fault)]
    outcome = push(staged)
    assert outcome.status == 0, outcome.stderr
    assert held(hub) == content(staged)
    assert len(hub.repositories[REPO].commits) == 2
    if fault.headers:
        assert waits[:2] == [3.0, 3.0]
    if "resolve" not in fault.route:
        assert "again" in outcome.stderr or "looking whether it arrived" in outcome.stderr, "it is told"


def test_an_answer_that_is_lost_together_with_the_hub_is_not_called_a_failure(staged: Path, hub: FakeHub) -> None:
    push(staged)
    change(staged)
    asked = hub.asked("GET /api/models/")
    hub.faults = [Fault("/commit/", cut=True, after=True)]
    cutting = hub.fault_on

    def then_nothing(request: str) -> Fault | None:
        found = cutting(request)
        if found is not None:
            hub.faults = [Fault("", cut=True)]
        return found

    hub.fault_on = then_nothing  # type: ignore[method-assign]
    outcome = push(staged)
    assert outcome.status == 6
    assert "it is not known whether the commit arrived" in flat(outcome)
    assert "nothing was published" not in flat(outcome)
    assert hub.asked("GET /api/models/") > asked
    hub.fault_on, hub.faults = cutting, []  # type: ignore[method-assign]
    again = push(staged)
    assert (again.status, held(hub)) == (0, content(staged))
    assert "already there" in again.stderr
    assert len(hub.repositories[REPO].commits) == 3


def test_a_change_that_somebody_makes_meanwhile_is_not_written_over(staged: Path, hub: FakeHub) -> None:
    push(staged)
    change(staged)
    repository, asking = hub.repositories[REPO], hub.fault_on

    def somebody_else(request: str) -> Fault | None:
        if "/preupload/" in request:
            repository.commit({**repository.files, "mine.md": b"mine"}, "by somebody else")
        return asking(request)

    hub.fault_on = somebody_else  # type: ignore[method-assign]
    outcome = push(staged)
    assert outcome.status == 6
    assert "somebody else changes the repository" in flat(outcome)
    assert held(hub)["mine.md"] == b"mine"
    assert [commit.message for commit in repository.commits].count("by somebody else") == 1, "it is not tried again"


def test_large_files_that_arrived_are_not_sent_again(staged: Path, hub: FakeHub) -> None:
    hub.faults = [Fault("/commit/", 403)]
    assert push(staged).status == 6
    assert hub.asked("PUT /lfs/") == 1
    hub.faults = []
    assert push(staged).status == 0
    assert hub.asked("PUT /lfs/") == 1


def test_the_same_again_makes_no_commit_and_a_change_makes_one(staged: Path, hub: FakeHub) -> None:
    first = push(staged)
    assert "created org/tiny, private" in first.stderr
    assert hub.repositories[REPO].private
    again = push(staged)
    assert again.status == 0
    assert "already there at commit" in again.stderr
    assert len(hub.repositories[REPO].commits) == 2
    change(staged)
    assert push(staged).status == 0
    assert held(hub) == content(staged), "what is no longer published is gone"
    assert len(hub.repositories[REPO].commits) == 3


def test_other_bytes_at_the_hub_are_caught(staged: Path, hub: FakeHub) -> None:
    hub.spoiled = {"adapter_model.safetensors"}
    outcome = push(staged)
    assert outcome.status == 5
    assert "adapter_model.safetensors has other bytes" in flat(outcome)
    hub.spoiled = set()
    assert push(staged).status == 0
    hub.spoiled = {"publish.json"}
    assert push(staged, to="me/tiny").status == 5


def test_a_download_that_fails_is_said_to_be_published(staged: Path, hub: FakeHub) -> None:
    hub.faults = [Fault("/resolve/", 403)]
    outcome = push(staged)
    assert outcome.status == 6
    assert "published, and it cannot be downloaded" in flat(outcome)
    hub.faults = []
    assert "already there" in push(staged).stderr


BAD_CARDS = {
    "license: [": "no YAML",
    "tags: lora": '"tags" must be list',
    "license: other": '"license_name" is required',
    "base_model: /home/me/base": '"base_model" with value',
    "model-index:\n- name: a\n  results:\n  - task: {type: x}\n    metrics: [{type: y}]": (
        "dataset.type.*dataset.name.*value. is required"
    ),
}


@pytest.mark.parametrize(("metadata", "message"), BAD_CARDS.items())
def test_metadata_is_refused_whole_and_before_anything_is_made(
    metadata: str, message: str, staged: Path, hub: FakeHub
) -> None:
    (staged / "README.md").write_text(f"---\n{metadata}\n---\n# x\n", encoding="utf-8")
    restage(staged)
    outcome = push(staged)
    assert outcome.status == 3, outcome.stderr
    assert re.search(message, flat(outcome)), outcome.stderr
    assert hub.repositories == {}
    assert hub.lfs == {}


def test_a_repository_of_something_else_is_refused(staged: Path, hub: FakeHub) -> None:
    hub.add(REPO, {"config.json": b"{}"})
    outcome = push(staged)
    assert (outcome.status, held(hub)) == (3, {"config.json": b"{}"})
    assert "it was not published from here" in flat(outcome)
    manifest = json.loads((staged / "publish.json").read_bytes()) | {"name": "another"}
    hub.add(REPO, {"publish.json": json.dumps(manifest).encode()})
    outcome = push(staged)
    assert (outcome.status, len(held(hub))) == (3, 1)
    assert "it holds 'another', and this is 'tiny'" in flat(outcome)
    hub.add(REPO, {})
    assert push(staged).status == 0, "an empty one is used"


def test_private_is_the_default_and_public_has_to_be_meant(staged: Path, hub: FakeHub) -> None:
    hub.add(REPO, {}, private=False)
    outcome = push(staged)
    assert (outcome.status, held(hub)) == (3, {})
    assert "it is public there" in flat(outcome)
    assert push(staged, "--public").status == 0
    hub.add("me/tiny", {})
    assert push(staged, "--public", to="me/tiny").status == 3
    del hub.repositories["me/tiny"]
    assert push(staged, "--public", to="me/tiny").status == 0
    assert not hub.repositories["me/tiny"].private


def test_without_login_or_offline_nothing_is_asked(
    staged: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE=1 forbids" in flat(push(staged))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    outcome = push(staged)
    assert outcome.status == 6
    assert "nobody is logged in to the hub here" in flat(outcome)
    assert "hf auth login" in flat(outcome)
    assert hub.requests == []


def test_a_token_that_the_hub_does_not_know(staged: Path, hub: FakeHub) -> None:
    hub.tokens = {"hf_other"}
    outcome = push(staged)
    assert outcome.status == 6
    assert "does not know this token" in flat(outcome)
    assert hub.repositories == {}


def test_an_organization_that_is_not_ones_own(staged: Path, hub: FakeHub) -> None:
    outcome = push(staged, to="strangers/tiny")
    assert outcome.status == 6
    assert "may not write there (status 403" in flat(outcome)


def test_a_folder_that_is_not_as_its_list_says_is_not_sent(staged: Path, hub: FakeHub) -> None:
    (staged / "extra.json").write_text("{}")
    assert "extra.json is not listed" in flat(push(staged))
    (staged / "extra.json").rename(staged / "extra.bin")
    restage(staged)
    outcome = push(staged)
    assert outcome.status == 3
    assert "'extra.bin' is of a kind that is not published" in flat(outcome)
    assert hub.requests == []


def test_a_slow_hub_is_waited_for(staged: Path, hub: FakeHub) -> None:
    hub.faults = [Fault("PUT /lfs/", seconds=0.1), Fault("/commit/", seconds=0.1)]
    assert push(staged).status == 0
