"""Which fast paths are chosen for which machine."""

from __future__ import annotations

import pytest

from finetune.capabilities import Machine, choose

HOPPER = Machine(cuda=True, cuda_capability=(9, 0), triton=True, flash_attention=True)


def test_a_cpu_gets_what_is_exact_there() -> None:
    assert choose(Machine(cuda=False), "bfloat16").named() == {
        "attention": "sdpa",
        "loss": "labelled",
        "optimizer": "adamw_torch",
        "autocast": "off",
    }


def test_a_large_gpu_gets_every_fast_path() -> None:
    assert choose(HOPPER, "bfloat16").named() == {
        "attention": "flash_attention_2",
        "loss": "trl_fused",
        "optimizer": "paged_adamw_8bit",
        "autocast": "bfloat16",
    }


@pytest.mark.parametrize(
    ("machine", "dtype", "key", "value"),
    [
        pytest.param(HOPPER, "float32", "attention", "sdpa", id="flash attention has no fp32"),
        pytest.param(HOPPER, "float32", "autocast", "off", id="fp32 is meant"),
        pytest.param(
            Machine(cuda=True, cuda_capability=(7, 5), flash_attention=True),
            "bfloat16",
            "attention",
            "sdpa",
            id="Turing",
        ),
        pytest.param(Machine(cuda=True, bf16=False), "bfloat16", "autocast", "off", id="no bf16"),
        pytest.param(Machine(cuda=True), "bfloat16", "loss", "labelled", id="no Triton"),
        pytest.param(
            Machine(cuda=True, bitsandbytes=False), "bfloat16", "optimizer", "adamw_torch", id="no bitsandbytes"
        ),
    ],
)
def test_what_is_missing_is_gone_without(machine: Machine, dtype: str, key: str, value: str) -> None:
    assert choose(machine, dtype).named()[key] == value
