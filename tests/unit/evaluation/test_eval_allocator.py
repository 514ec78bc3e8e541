from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from evaluation.allocator import keep_freed_memory, return_freed_memory

FREED = """
import resource
from evaluation.allocator import keep_freed_memory, return_freed_memory
if {kept}:
    assert keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    bytearray(2**26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


GAPS = """
import resource
from pathlib import Path
from evaluation.allocator import keep_freed_memory, return_freed_memory
assert keep_freed_memory()
held = [bytearray(2**22) for _ in range(64)]
del held[::2]
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
before = resident()
return_freed_memory()
print(before - resident())
"""


def page_faults(*, kept: bool) -> int:
    program = FREED.format(kept=kept)
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_what_is_freed_is_not_asked_for_again() -> None:
    assert page_faults(kept=True) < page_faults(kept=False) / 5


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_gaps_between_what_is_in_use_are_handed_back() -> None:
    found = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=True).stdout
    assert int(found) > 24 * 2**22  # of the 32 blocks freed


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
    return_freed_memory()
