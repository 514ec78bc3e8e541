"""Mixing is done on the changes of the weights: compared with the same arithmetic on whole matrices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.adapter_combining import Factors, Mix, check_combinable, combine, factorize
from finetune.errors import DataError
from finetune.peft_weights import open_peft_folder
from finetune.peft_writing import write_lora

MODULE = "model.layers.0.self_attn.q_proj"
OUT, IN = 48, 40


def change(seed: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(OUT, rank, generator=generator) @ torch.randn(rank, IN, generator=generator)


def adapters(folder: Path, ranks: tuple[int, ...], base: tuple[str, ...] = ("org/base",)) -> list[Path]:
    folders = []
    for number, rank in enumerate(ranks):
        generator = torch.Generator().manual_seed(number)
        factors = Factors(torch.randn(rank, IN, generator=generator), torch.randn(OUT, rank, generator=generator), 1.0)
        path = folder / f"adapter-{number}"
        path.mkdir()
        write_lora(path, {MODULE: factors}, {}, (base[number % len(base)], None))
        folders.append(path)
    return folders


def product(factors: Factors) -> Tensor:
    return factors.up @ factors.down


def deltas(folders: list[Path]) -> list[Tensor]:
    return [open_peft_folder(folder).change(MODULE).product() for folder in folders]  # type: ignore[attr-defined]


def mixed(folders: list[Path], mix: Mix) -> Factors:
    return combine([open_peft_folder(folder) for folder in folders], MODULE, mix)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_concatenation_is_the_weighted_sum_exactly(tmp_path: Path) -> None:
    folders = adapters(tmp_path, (3, 5))
    found = mixed(folders, Mix("cat", (0.25, -2.0)))
    one, other = deltas(folders)
    assert found.down.shape[0] == 8
    assert relative(product(found), 0.25 * one - 2.0 * other) < 1e-6


def test_a_sum_brought_to_a_rank_is_the_best_of_that_rank(tmp_path: Path) -> None:
    folders = adapters(tmp_path, (4, 4))
    found = mixed(folders, Mix("sum", (1.0, 1.0), rank=3))
    whole = sum(deltas(folders), torch.zeros(OUT, IN))
    values = torch.linalg.svdvals(whole)
    lost = (values[3:].square().sum() / values.square().sum()).sqrt()
    assert relative(product(found), whole) == pytest.approx(float(lost), rel=1e-4)
    assert found.energy == pytest.approx(1 - float(lost) ** 2, rel=1e-4)


def test_ties_leaves_out_what_the_elected_sign_does_not_have(tmp_path: Path) -> None:
    folders = adapters(tmp_path, (6, 6, 6))
    found = mixed(folders, Mix("ties", (1.0, 1.0, 1.0), rank=IN, density=0.3))
    kept = []
    for delta in deltas(folders):
        smallest_kept = delta.abs().flatten().sort(descending=True).values[round(0.3 * delta.numel()) - 1]
        kept.append(torch.where(delta.abs() >= smallest_kept, delta, 0.0))
    expected = torch.zeros(OUT, IN)
    sign = sum(kept, torch.zeros(OUT, IN)).sign()
    for row in range(OUT):
        for column in range(IN):
            values = [float(one[row, column]) for one in kept if float(one[row, column]) * float(sign[row, column]) > 0]
            expected[row, column] = sum(values) / len(values) if values else 0.0
    assert found.energy == pytest.approx(1.0, abs=1e-5)
    assert relative(product(found), expected) < 1e-4


def test_dare_keeps_the_mean_and_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    folders = adapters(tmp_path, (6, 6))
    draws = [product(mixed(folders, Mix("dare", (0.5, 0.5), rank=IN, density=0.5, seed=seed))) for seed in range(200)]
    again = product(mixed(folders, Mix("dare", (0.5, 0.5), rank=IN, density=0.5, seed=7)))
    assert torch.equal(draws[7], again)
    assert not torch.allclose(draws[7], draws[8])
    whole = sum(0.5 * delta for delta in deltas(folders))
    assert relative(torch.stack(draws).mean(0), whole) < 0.15  # a standard error of 1 / √200, and some


def test_density_one_changes_nothing_that_agrees(tmp_path: Path) -> None:
    (folder,) = adapters(tmp_path, (6,))
    for way in ("ties", "dare"):
        found = mixed([folder], Mix(way, (1.0,), density=1.0))  # type: ignore[arg-type]
        assert relative(product(found), deltas([folder])[0]) < 1e-5


@given(seed=st.integers(0, 1000), rank=st.integers(1, 12), kept=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_factors_lose_what_they_say(seed: int, rank: int, kept: int) -> None:
    delta = change(seed, rank)
    found = factorize(delta, kept, torch.Generator().manual_seed(0))
    lost = relative(product(found), delta) ** 2
    assert found.energy == pytest.approx(1 - lost, abs=1e-4)
    if kept >= rank:
        assert lost < 1e-8


def test_the_randomized_way_finds_the_best_factors_of_a_large_change() -> None:
    generator = torch.Generator().manual_seed(0)
    values = 0.9 ** torch.arange(300.0)
    left = torch.linalg.qr(torch.randn(400, 300, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(300, 300, generator=generator)).Q
    found = factorize((left * values) @ right, 16, generator)
    best = float(values[:16].square().sum() / values.square().sum())
    assert found.energy == pytest.approx(best, abs=1e-5)


def test_adapters_of_different_bases_are_not_mixed(tmp_path: Path) -> None:
    folders = adapters(tmp_path, (2, 2), ("org/base", "org/other"))
    with pytest.raises(DataError, match="different bases: org/base@any, org/other@any"):
        check_combinable([open_peft_folder(folder) for folder in folders])
