from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

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

COMPILED = """
import torch
from evaluation import allocator
allocator.COMPILED_PRODUCTS = {kept}
allocator.limit_compiled_products()
for _ in range(2):
    print("all of them", flush=True)
    for rows in range(64, 72):
        torch.ones(rows, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)
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


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN does no bf16 on this processor")
@pytest.mark.parametrize(("kept", "again"), [(4, 8), (8, 0)])
def test_few_compiled_products_are_kept(kept: int, again: int) -> None:
    program = COMPILED.format(kept=kept)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN")}
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"ONEDNN_VERBOSE": "profile_create"},
    ).stdout
    _, first, second = (part.count("create:cache_miss") for part in found.split("all of them"))
    assert (first, second) == (8, again)


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
    return_freed_memory()
