"""How often a request is repeated: without a network and without waiting."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import httpx2
import pytest

from finetune.errors import MachineError
from finetune.hub_patience import LONGEST_WAIT_SECONDS, TRIES, PatientClient

Answer = httpx2.Response | Exception
URL = "http://hub/api/models/org/name"
COMMIT = f"{URL}/commit/main"


class Hub:
    """Gives the answers that were ordered, the last of them for ever."""

    def __init__(self, *answers: Callable[[], Answer]) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []
        self.waits: list[float] = []
        self.said: list[str] = []
        self.counted: list[int] = []
        self.client = PatientClient(
            self.said.append, self.counted.append, self.waits.append, httpx2.MockTransport(self.answer)
        )

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.bodies.append(request.read())
        answer = (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])()
        if isinstance(answer, Exception):
            raise answer
        return answer


def status(code: int, **headers: str) -> Callable[[], Answer]:
    return lambda: httpx2.Response(code, headers={name.replace("_", "-"): value for name, value in headers.items()})


def cut() -> Answer:
    return httpx2.ReadError("cut")


@pytest.mark.parametrize("passing", [status(429), status(500), status(502), status(503), status(504), cut])
def test_what_may_pass_is_waited_for_and_told(passing: Callable[[], Answer]) -> None:
    hub = Hub(passing, passing, status(200))
    assert hub.client.post(URL, json={"a": 1}).status_code == 200
    assert hub.waits == [1.0, 2.0]
    assert len(hub.said) == 2
    assert len(set(hub.bodies)) == 1, "the same body each time"


@pytest.mark.parametrize("final", [400, 401, 403, 404, 409, 412, 413])
def test_what_does_not_pass_is_returned_at_once(final: int) -> None:
    hub = Hub(status(final))
    assert hub.client.get(URL).status_code == final
    assert hub.waits == []


def test_it_is_given_up_after_so_many_tries() -> None:
    hub = Hub(status(500))
    with pytest.raises(MachineError, match=f"status 500 after {TRIES} tries"):
        hub.client.get(URL)
    assert len(hub.bodies) == TRIES
    broken = Hub(cut)
    with pytest.raises(httpx2.ReadError):
        broken.client.get(URL)
    assert len(broken.bodies) == TRIES


def test_a_stated_wait_is_kept_to_the_second_and_a_long_one_is_passed_on() -> None:
    hub = Hub(status(429, Retry_After="7"), status(200))
    assert hub.client.get(URL).status_code == 200
    assert hub.waits == [7.0]
    long = Hub(status(429, Retry_After=str(LONGEST_WAIT_SECONDS + 1)))
    with pytest.raises(MachineError, match="asks to wait 61 seconds"):
        long.client.get(URL)
    assert long.waits == []


def test_a_commit_is_sent_once_unless_it_was_surely_not_made() -> None:
    for failure in (status(500), status(503)):
        hub = Hub(failure, status(200))
        assert hub.client.post(COMMIT, content=b"x").status_code >= 500
        assert len(hub.bodies) == 1
    broken = Hub(cut, status(200))
    with pytest.raises(httpx2.ReadError):
        broken.client.post(COMMIT, content=b"x")
    limited = Hub(status(429), status(200))
    assert limited.client.post(COMMIT, content=b"x").status_code == 200


def test_a_busy_hub_is_asked_again_with_pauses_and_an_end() -> None:
    def busy() -> Answer:
        return httpx2.Response(409, text="Cannot create repo: another conflicting operation is in progress")

    hub = Hub(busy)
    with pytest.raises(MachineError, match="status 409"):
        hub.client.post("http://hub/api/repos/create", json={})
    assert hub.waits == [1.0, 2.0, 4.0]


def pieces() -> Iterator[bytes]:
    yield from (b"ab", b"c")


def test_an_upload_is_counted_and_its_failures_add_up_over_the_librarys_own_repetitions() -> None:
    hub = Hub(status(500))
    for _ in range(TRIES - 1):
        assert hub.client.put("http://store/a", content=pieces()).status_code == 500
        assert sum(hub.counted) == 0, "taken back"
    with pytest.raises(MachineError, match="status 500"):
        hub.client.put("http://store/a", content=pieces())
    good = Hub(status(200))
    good.client.put("http://store/a", content=io.BytesIO(b"abc"))
    assert sum(good.counted) in (0, 3)
    good.client.put("http://store/a", content=pieces())
    assert good.bodies[-1] == b"abc"


def test_an_upload_that_is_cut_again_and_again_is_given_up() -> None:
    hub = Hub(cut)
    for _ in range(TRIES - 1):
        with pytest.raises(httpx2.ReadError):
            hub.client.put("http://store/a", content=pieces())
    with pytest.raises(MachineError, match="cut 4 times"):
        hub.client.put("http://store/a", content=pieces())
