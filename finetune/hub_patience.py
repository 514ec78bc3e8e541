"""How often, and how long, a request to the hub is repeated: one rule for every route, in the place of the library's.

huggingface_hub 2.4 repeats some requests and not others (`create_repo` and the commit itself are sent once), waits as
long as a `Retry-After` says, be it hours, and has no timeout. Here every answer that may pass is waited for, told, and
given up after a bounded time. The commit alone is never sent twice from here: whether it arrived is looked up first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2

from finetune.errors import MachineError

TRIES = 4
"""How often a request is sent in all."""
LONGEST_WAIT_SECONDS = 60
"""A longer `Retry-After` is passed on to the person."""
PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Answers that may be others a moment later."""
TIMEOUT = httpx2.Timeout(180, connect=20)
"""In seconds: of silence in the middle of an answer, and until a connection stands."""

COMMIT_ROUTE = "/commit/"
_BUSY = "another conflicting operation is in progress"
"""Said with 409 while another repository is created; huggingface_hub 2.4 would ask again without a pause or an end."""

Say = Callable[[str], None]
Advance = Callable[[int], None]


class PatientClient(httpx2.Client):
    """A client that waits for answers that may pass, tells so, and counts what it uploads."""

    def __init__(
        self,
        say: Say,
        advance: Advance,
        sleep: Callable[[float], None] | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Tell waits to `say` and bytes that were sent to `advance`; `transport` stands for the network in tests."""
        super().__init__(follow_redirects=True, timeout=TIMEOUT, transport=transport)
        self._say = say
        self._advance = advance
        self._sleep = sleep or time.sleep
        self._failures: dict[str, int] = {}

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request, more than once where that can help.

        Raises:
            MachineError: the hub keeps failing, or wants to be left alone for longer than is waited here.
        """
        if not isinstance(request.stream, httpx2.ByteStream):
            return self._send_file(request, options)
        only_once = COMMIT_ROUTE in request.url.path
        for wait in (1.0, 2.0, 4.0, None):
            try:
                response = super().send(request, **options)
            except httpx2.TransportError as error:
                if only_once or wait is None:
                    raise
                self._tell_and_sleep(type(error).__name__, wait)
                continue
            if not _may_pass(response) or (only_once and response.status_code != 429):
                return response
            seconds = self._checked(response, wait)
            response.close()
            self._tell_and_sleep(f"status {response.status_code}", seconds)
        raise AssertionError("the last answer is returned or raised")

    def _send_file(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
        """Send a file; its repetition is the library's, which alone can go back to where the file began."""
        tries = self._failures.get(str(request.url), 0) + 1
        counted = _Counted(request.stream, self._advance)
        request.stream = counted
        try:
            response = super().send(request, **options)
        except httpx2.TransportError as error:
            self._failures[str(request.url)] = tries
            counted.take_back()
            if tries >= TRIES:
                raise MachineError(f"the connection was cut {tries} times ({type(error).__name__})") from error
            self._say(f"  {type(error).__name__} in mid-upload: trying again ({tries} of {TRIES - 1})")
            raise
        if response.status_code in PASSING:
            self._failures[str(request.url)] = tries
            counted.take_back()
            self._checked(response, None if tries >= TRIES else 1.0)
            self._say(f"  status {response.status_code} for an upload: trying again ({tries} of {TRIES - 1})")
        return response

    def _checked(self, response: httpx2.Response, wait: float | None) -> float:
        """Return how long to wait; an answer that is not worth it ends here."""
        status = response.status_code
        stated = response.headers.get("Retry-After", "")
        asked = float(stated) if stated.isdigit() else None
        if asked is not None and asked > LONGEST_WAIT_SECONDS:
            raise MachineError(f"the hub asks to wait {asked:.0f} seconds (status {status})", hint="try again then")
        if wait is None:
            raise MachineError(
                f"the hub still answers with status {status} after {TRIES} tries", hint="try again later"
            )
        return wait if asked is None else asked

    def _tell_and_sleep(self, what: str, seconds: float) -> None:
        self._say(f"  the hub: {what}; trying again in {seconds:.0f} s")
        self._sleep(seconds)


def _may_pass(response: httpx2.Response) -> bool:
    if response.status_code == 409:
        return _BUSY in response.read().decode(errors="replace")
    return response.status_code in PASSING


class _Counted(httpx2.SyncByteStream):
    """The bytes of an upload, counted as they are sent."""

    def __init__(self, inner: Any, advance: Advance) -> None:
        self._inner = inner
        self._advance = advance
        self._sent = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._inner:
            self._sent += len(chunk)
            self._advance(len(chunk))
            yield chunk

    def take_back(self) -> None:
        """Count again from the beginning: the upload failed."""
        self._advance(-self._sent)
        self._sent = 0
