"""Runs one hostile input in a process of its own, and says what it did: refused, taken, run, written, hung."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.errors import UserError
from evaluation.rendering import Unrenderable
from finetune.turns import RowUnusable

SECONDS = 1.0
"""Processor time: what takes longer hangs. A chat template is given 0.5 s, and what it is compiled in."""
PATIENCE = 30.0
"""Seconds until it is no longer waited for; a busy machine makes one slow."""
MEMORY = 4 * 2**30
"""Bytes of address space that an input may cost beside what the process has."""

_RUNS = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "pickle.find_class")
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
_ASKS = ("socket.connect", "socket.getaddrinfo", "urllib.Request")


@dataclass(frozen=True)
class Attack:
    """One hostile input: what tries it, in an empty folder, and whether it may be taken where it does no harm."""

    name: str
    attempt: Callable[[Path], object]
    harmless: bool = False
    prepare: Callable[[Path], object] | None = None
    """Fills the folder, before anybody watches."""


@dataclass
class Seen:
    """What happened."""

    ended: str = ""
    """`refused`, `taken`, or `fault` with the error."""
    said: str = ""
    seconds: float = 0.0
    deeds: list[str] = field(default_factory=list)
    """Programs run, modules imported, files changed and names asked for beyond what is allowed."""

    def wrong(self, attack: Attack) -> str:
        """Say what of it must not be; "" if nothing."""
        if self.deeds:
            return f"did {self.deeds[:3]}"
        if self.seconds > SECONDS:
            return f"took {self.seconds:.1f} s"
        if self.ended == "refused" or (self.ended == "taken" and attack.harmless):
            return ""
        return f"{self.ended}: {self.said[:300]}"


def attack_in_process(attack: Attack, place: Path) -> Seen:
    """Try an attack in a fork of this process, which has the libraries already, and watch it."""
    place.mkdir()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_attacked(attack, place, writer)
    os.close(writer)
    began, data = time.monotonic(), b""
    while (left := PATIENCE - (time.monotonic() - began)) > 0 and select.select([reader], [], [], left)[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            break
        data += part
    os.close(reader)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not data.endswith(b"\n"):
        died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        return Seen("fault", f"the process ended by signal {died} or never", time.monotonic() - began)
    return Seen(**json.loads(data))


def _be_attacked(attack: Attack, place: Path, writer: int) -> None:
    """Never returns."""
    seen = Seen()
    try:
        os.chdir(place)
        if attack.prepare is not None:
            attack.prepare(place)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        watching = [True]
        sys.addaudithook(lambda event, arguments: _watch(event, arguments, place, seen.deeds) if watching[0] else None)
        began = time.process_time()
        seen.ended, seen.said = _outcome(attack, place)
        seen.seconds = time.process_time() - began
        watching[0] = False
        if (place / "executed").exists():
            seen.deeds.append("a payload ran")
        os.write(writer, json.dumps(vars(seen)).encode() + b"\n")
    finally:
        os._exit(0)


def _outcome(attack: Attack, place: Path) -> tuple[str, str]:
    try:
        return "taken", repr(attack.attempt(place))[:300]
    except (UserError, Unrenderable, RowUnusable) as error:
        return "refused", str(error)
    except SystemExit as error:
        return ("refused" if error.code else "taken"), ""
    except BaseException as error:  # noqa: BLE001  # of the input; it is reported
        return "fault", f"{type(error).__name__}: {error}"


def _watch(event: str, arguments: tuple[object, ...], place: Path, deeds: list[str]) -> None:
    if event in _RUNS or event in _ASKS:
        deeds.append(f"{event} {arguments!r}"[:200])
    elif event == "import" and isinstance(arguments[1], str) and arguments[1].startswith(str(place)):
        deeds.append(f"imported {arguments[0]}")
    elif event == "open" and _writes(arguments) and not _inside(arguments[0], place):
        deeds.append(f"wrote {arguments[0]}")
    elif event in _CHANGES and not _inside(arguments[0], place):
        deeds.append(f"{event} {arguments[0]}")


def _writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def _inside(path: object, place: Path) -> bool:
    if isinstance(path, int) or str(path) in ("/dev/null", "/dev/tty"):
        return True
    text = path.decode(errors="replace") if isinstance(path, bytes) else str(path)
    return Path(os.path.realpath(text)).is_relative_to(place.resolve())
