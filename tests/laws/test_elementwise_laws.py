"""Our compiled functions compute what torch's do, whatever lay in memory before and however many threads there are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import Tensor

from finetune import elementwise_library
from finetune.cache import kernels_folder
from finetune.elementwise import Block, Elementwise, Heads, Norm, Rotation, TorchElementwise
from finetune.elementwise_library import NotCompiled, load_elementwise
from finetune.fused_attention import group_documents
from finetune.machine import compiler_version

LENGTHS = (70, 66, 40, 5, 1)
TOKENS, HIDDEN, INNER = sum(LENGTHS), 48, 90
QUERIES, KEYS = Heads(2, 3), Heads(2, 1)
LAST = Block(40, 70, QUERIES.per_key)
needs_compiler = pytest.mark.skipif(compiler_version() is None, reason="there is no g++")


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def rotation(dtype: torch.dtype) -> Rotation:
    return Rotation(drawn(TOKENS, 16, dtype=dtype, seed=1), drawn(TOKENS, 16, dtype=dtype, seed=2))


def normed(parts: Elementwise, dtype: torch.dtype) -> list[Tensor]:
    norm, x = Norm(drawn(HIDDEN, dtype=dtype, seed=3), 1e-5), drawn(TOKENS, HIDDEN, dtype=dtype)
    y, scale = parts.norm(x, norm, 5)
    slope, beside = (drawn(TOKENS, HIDDEN, dtype=dtype, seed=seed) for seed in (4, 5))
    backward = [one for past in (beside, None) for one in parts.norm_backward(slope.clone(), x, scale, norm, past)]
    return [y, scale, *backward]


def gated(parts: Elementwise, dtype: torch.dtype) -> list[Tensor]:
    gates, slope = drawn(TOKENS, 2 * INNER, dtype=dtype), drawn(TOKENS, INNER, dtype=dtype, seed=1)
    return [parts.swiglu(gates, 3), *parts.swiglu_backward(slope, gates)]


def laid_out(parts: Elementwise, dtype: torch.dtype) -> list[Tensor]:
    found = []
    for heads, turned in ((QUERIES, rotation(dtype)), (KEYS, rotation(dtype)), (KEYS, None)):
        width = 16 * heads.key_value * heads.per_key
        wide, back = drawn(TOKENS, width + 32, dtype=dtype), torch.zeros(TOKENS, width + 32, dtype=dtype)
        for group in group_documents(LENGTHS):
            x = parts.spread(wide[:, 16 : width + 16], group, heads, turned)
            parts.gather(x, group, heads, turned, back[:, 16 : width + 16])
            found.append(x)
        found.append(back)
    return found


def attended(parts: Elementwise, dtype: torch.dtype) -> list[Tensor]:
    scores = drawn(4, 30 * QUERIES.per_key, LAST.end, dtype=dtype)
    p, normalizer = parts.softmax(scores.clone(), LAST)
    slope = drawn(*scores.shape, dtype=dtype, seed=1)
    return [p, normalizer, *parts.softmax_backward(slope, scores.clone(), normalizer, LAST)]


def packed_layer(shape: tuple[int, int], dtype: torch.dtype, nested: bool, kind: str = "nf4") -> Linear4bit:
    """A layer in four bits, with a weight of which each block has another size, one block of zeros among them."""
    weight = drawn(*shape, seed=6) * torch.rand(shape[0], 1, generator=torch.Generator().manual_seed(7))
    weight[0] = 0
    layer = Linear4bit(shape[1], shape[0], bias=False, compute_dtype=dtype, quant_type=kind)
    layer.weight = Params4bit(weight.to(dtype), requires_grad=False, quant_type=kind, compress_statistics=nested)
    layer.weight = layer.weight.to("cpu")
    return layer


def unpacked(parts: Elementwise, dtype: torch.dtype) -> list[Tensor]:
    wide = drawn(96, 320, dtype=dtype)
    for nested in (True, False):
        parts.unpack(packed_layer((96, 128), dtype, nested), wide[:, 16 + 160 * nested :][:, :128])
    return [wide]


COMPUTED: dict[str, Callable[[Elementwise, torch.dtype], list[Tensor]]] = {
    "norm": normed,
    "SwiGLU": gated,
    "heads": laid_out,
    "softmax": attended,
    "weights": unpacked,
}


@needs_compiler
@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-6), (torch.bfloat16, 2**-6)], ids=["fp32", "bf16"])
def test_ours_are_torchs(name: str, dtype: torch.dtype, most: float) -> None:
    """In bfloat16, where torch rounds after each of its calls and ours round once, to a few of its steps of 2⁻⁸."""
    ours = COMPUTED[name](load_elementwise(compiled=True), dtype)
    theirs = COMPUTED[name](TorchElementwise(), dtype)
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert (one - other).float().norm() <= most * other.float().norm()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("nested", [False, True], ids=["scales", "scales in bytes"])
@pytest.mark.parametrize("shape", [(1, 64), (37, 192), (130, 576), (64, 1536), (9, 96), (64, 65)], ids=str)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_weights_are_unpacked_to_the_bits_that_bitsandbytes_gives(
    dtype: torch.dtype, nested: bool, shape: tuple[int, int], kind: str
) -> None:
    """Also of rows that begin within a block, and in FP4, which are left to it."""
    layer = packed_layer(shape, dtype, nested, kind)
    wide = drawn(shape[0], shape[1] + 7, dtype=dtype)
    expected = wide.clone()
    expected[:, : shape[1]] = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    load_elementwise(compiled=True).unpack(layer, wide[:, : shape[1]])
    assert torch.equal(wide, expected)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_scale_that_is_not_finite_shows_in_its_block_alone(dtype: torch.dtype) -> None:
    layer = packed_layer((4, 128), dtype, nested=False)
    layer.weight.quant_state.absmax[3] = float("nan")
    out = torch.zeros(4, 128, dtype=dtype)
    load_elementwise(compiled=True).unpack(layer, out)
    assert out.isnan().nonzero().tolist() == [[1, column] for column in range(64, 128)]


@needs_compiler
@pytest.mark.parametrize("name", COMPUTED)
def test_in_bfloat16_ours_are_at_least_as_near_to_fp32_as_torchs(name: str) -> None:
    exact = COMPUTED[name](TorchElementwise(), torch.float32)
    ours, theirs = (
        [(one.float() - true).norm() for one, true in zip(COMPUTED[name](parts, torch.bfloat16), exact, strict=True)]
        for parts in (load_elementwise(compiled=True), TorchElementwise())
    )
    assert sum(ours) <= 1.02 * sum(theirs)


@needs_compiler
@pytest.mark.parametrize("name", COMPUTED)
def test_no_result_depends_on_the_number_of_threads(name: str) -> None:
    parts, threads = load_elementwise(compiled=True), torch.get_num_threads()
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(COMPUTED[name](parts, torch.bfloat16))
    torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))


@needs_compiler
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_finite_is_seen_to_be(wrong: float, dtype: torch.dtype) -> None:
    parts = load_elementwise(compiled=True)
    x = drawn(TOKENS, HIDDEN, dtype=dtype)
    x[7, 3] = wrong
    assert not parts.norm(x, Norm(torch.ones(HIDDEN, dtype=dtype), 1e-5), 0)[0][7].isfinite().all()
    assert parts.norm(x, Norm(torch.ones(HIDDEN, dtype=dtype), 1e-5), 0)[0][8].isfinite().all()
    assert not parts.swiglu(x, 0)[7, 3].isfinite()
    scores = drawn(1, 30 * QUERIES.per_key, LAST.end, dtype=dtype)
    scores[0, 0, 0] = wrong
    assert not parts.softmax(scores, LAST)[0][0, 0].isfinite().all()


# ------------------------------------------------------------------ the library


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return kernels_folder(tmp_path / "finetune-recipes")


@needs_compiler
def test_it_is_compiled_once_and_a_damaged_one_again(cache: Path) -> None:
    load_elementwise(compiled=True)
    (library,) = cache.iterdir()
    before = library.stat()
    load_elementwise(compiled=True)
    assert library.stat() == before
    library.unlink()
    library.write_bytes(b"\x7fELF, but no more")
    load_elementwise(compiled=True)
    (again,) = cache.iterdir()
    assert again.stat().st_size == before.st_size


@needs_compiler
def test_threads_are_torchs_own() -> None:
    """A second pool of threads would wait while the first computes, and each keep a core from the other."""
    program = (
        "from finetune.elementwise_library import load_elementwise; load_elementwise(compiled=True);"
        "print({line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line})"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told.count("libgomp") == 1


@needs_compiler
@pytest.mark.usefixtures("cache")
def test_what_the_compiler_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "elementwise.cpp"
    broken.write_text("this is not C++\n")
    monkeypatch.setattr(elementwise_library, "SOURCES", (broken,))
    with pytest.raises(NotCompiled, match=r"did not compile elementwise.cpp: .*this"):
        load_elementwise(compiled=True)


@pytest.mark.usefixtures("cache")
def test_without_a_compiler_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotCompiled, match=r"there is no g\+\+|this is not Linux"):
        load_elementwise(compiled=True)


@needs_compiler
@pytest.mark.usefixtures("cache")
def test_the_compiler_is_told_nothing_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = tmp_path / "g++"
    spy.write_text(f'#!/bin/sh\nenv >> {tmp_path}/seen\nexec /usr/bin/env -i PATH=/usr/bin:/bin g++ "$@"\n')
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    load_elementwise(compiled=True)
    assert "hf_secret" not in (tmp_path / "seen").read_text()
