"""What of this machine must not be published: its paths, its user and name, and the secrets of its environment."""

from __future__ import annotations

import getpass
import os
import re
import socket
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune.secret_patterns import secrets_in

SHORTEST_VALUE = 8
"""Characters of a secret in the environment."""
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|AUTH", re.IGNORECASE)
_COMMON = frozenset({"root", "user", "admin", "ubuntu", "debian", "runner", "localhost", "jovyan", "nobody"})


@dataclass(frozen=True)
class Private:
    """Texts of this machine."""

    paths: tuple[str, ...]
    """Absolute, the longest first."""
    users: tuple[str, ...]
    hosts: tuple[str, ...]
    values: tuple[tuple[str, str], ...]
    """Name of a variable of the environment, and its value."""


def describe_private(folders: Iterable[Path], environment: Mapping[str, str] | None = None) -> Private:
    """Look at this machine; `folders` are those that the run used."""
    variables = dict(os.environ) if environment is None else environment
    named = [*folders, Path.home(), Path.cwd(), Path(tempfile.gettempdir())]
    paths = {str(form) for path in named for form in (path.absolute(), path.resolve())}
    host = socket.gethostname()
    return Private(
        paths=tuple(sorted((path for path in paths if path.count("/") >= 1 and len(path) > 1), key=len, reverse=True)),
        users=_names(*_user()),
        hosts=_names(host, host.partition(".")[0]),
        values=tuple(sorted((name, value) for name, value in variables.items() if _is_secret(name, value))),
    )


def is_distinctive(name: str) -> bool:
    """Say whether a name is nobody else's word: long, and with a digit or a sign in it."""
    return len(name) >= SHORTEST_VALUE and re.search(r"[0-9_-]", name) is not None


def _user() -> tuple[str, ...]:
    try:
        return (getpass.getuser(),)
    except (KeyError, OSError):  # a container may run under a number that no user has; OSError from Python 3.13 on
        return ()


def _names(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if len(name) > 2 and name.lower() not in _COMMON))


def _is_secret(name: str, value: str) -> bool:
    # What names a file or a switch is no secret: SSH_AUTH_SOCK=/tmp/…, TOKENIZERS_PARALLELISM=false.
    if len(value) < SHORTEST_VALUE or value.startswith(("/", ".")) or len(set(value)) < 4:
        return False
    return bool(secrets_in(value)) or (_SECRET_NAME.search(name) is not None and re.search("[0-9]", value) is not None)
