"""What the hub refuses, in sentences: what it was, and what a person can do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

from finetune.errors import MachineError, UserError

NOTHING_PUBLISHED = "nothing was published; the same command goes on from here"
LOGIN = "log in with `hf auth login`, with a token that may write; or set HF_TOKEN"


@contextmanager
def explained_push(repo: str) -> Iterator[None]:
    """Turn what a push raises into a sentence and a way out.

    Raises:
        MachineError: in the place of what huggingface_hub and its HTTP client raise.
    """
    try:
        yield
    except RuntimeError as error:
        # An upload's own error is wrapped by the library, with the file's name.
        cause = error.__cause__ if error.__cause__ is not None else error
        raise _translated(cause, repo, str(error)) from error
    except (HfHubHTTPError, httpx2.HTTPError, OfflineModeIsEnabled, ValueError) as error:
        raise _translated(error, repo, "") from error
    except MachineError as error:
        raise MachineError(error.what, where=error.where or repo, hint=error.hint or NOTHING_PUBLISHED) from error


def _translated(error: BaseException, repo: str, context: str) -> UserError:
    where = f"{repo}: {context.rstrip('.')}" if context and not isinstance(error, RuntimeError) else repo
    if isinstance(error, UserError):
        return MachineError(error.what, where=where, hint=error.hint or NOTHING_PUBLISHED)
    if isinstance(error, HfHubHTTPError):
        return _refused(error, where)
    if isinstance(error, httpx2.HTTPError):
        what = f"the connection to the hub failed ({short_of(error)})"
        return MachineError(what, where=where, hint=NOTHING_PUBLISHED)
    if isinstance(error, EntryNotFoundError):
        return MachineError(f"the hub has no such file: {short_of(error)}", where=where, hint=NOTHING_PUBLISHED)
    return MachineError(f"the hub did not take it: {short_of(error)}", where=where, hint=NOTHING_PUBLISHED)


_REFUSALS = {
    401: ("the hub does not know this token", LOGIN),
    402: ("the hub wants this account to pay for it", "look at the account's storage on its page"),
    403: ("this token may not write there", f"check the name and the membership of its organization; {LOGIN}"),
    404: ("the hub has no such place", "check the organization's or user's name in org/name"),
    409: ("the name is taken, or something else is changing it at this moment", "choose another name, or try again"),
    412: ("somebody else changes the repository at this moment", "run the same command again"),
    413: ("a file is too large for the hub", "publish a smaller part, or shards"),
}


def _refused(error: HfHubHTTPError, where: str) -> MachineError:
    status = error.response.status_code
    what, hint = _REFUSALS.get(status, (f"the hub answered with status {status}", "try again later"))
    said = error.server_message
    told = f"{what} (status {status}{f': {said}' if said else ''})"
    return MachineError(told, where=where, hint=f"{hint}; nothing was published")


def short_of(error: BaseException) -> str:
    """Return the first line of what an error says."""
    if isinstance(error, HfHubHTTPError):
        return f"status {error.response.status_code}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0] or type(error).__name__
