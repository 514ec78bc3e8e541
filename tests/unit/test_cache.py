"""The cache: where entries lie, and that only intact ones count."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.cache import default_cache, file_entry, is_intact, locked


def test_the_default_follows_the_xdg_convention(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "finetune-recipes"


@pytest.mark.parametrize("stated", ["", "relative/folder"])
def test_an_empty_or_relative_setting_counts_as_none(monkeypatch: pytest.MonkeyPatch, stated: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", stated)
    assert default_cache() == Path.home() / ".cache" / "finetune-recipes"


def test_a_changed_file_is_not_intact(tmp_path: Path) -> None:
    sha256 = hashlib.sha256(b"as it was").hexdigest()
    entry = file_entry(tmp_path, sha256, "a.txt")
    assert not is_intact(entry, sha256)
    entry.parent.mkdir(parents=True)
    entry.write_bytes(b"as it was")
    assert is_intact(entry, sha256)
    entry.write_bytes(b"as it is")
    assert not is_intact(entry, sha256)


def test_a_second_process_waits_for_the_lock(tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    program = (
        "import sys; from pathlib import Path; from finetune.cache import locked\n"
        "with locked(Path(sys.argv[1])): print('in', flush=True)"
    )
    with locked(entry):
        other = subprocess.Popen([sys.executable, "-c", program, str(entry)], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=1)
    said, _ = other.communicate(timeout=20)
    assert said == "in\n"
