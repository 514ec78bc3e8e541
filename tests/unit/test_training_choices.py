from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_training import tiny_recipe
from trl.trainer.sft_config import SFTConfig

from finetune.batches import plan_batches
from finetune.capabilities import Choices, Machine, choose, this_machine
from finetune.machine import compiler_version
from finetune.training_arguments import SCHEDULES, apply_plan, build_arguments

ON_CPU = Choices(attention="sdpa", loss="labelled", optimizer="adamw_torch_fused", bf16_autocast=False, layers="fused")
H100 = Machine(cuda=True, cuda_capability=(9, 0), bf16=True, triton=True, flash_attention=True)


@pytest.mark.parametrize(
    ("machine", "dtype", "expected"),
    [
        (Machine(cuda=False), "float32", ON_CPU),
        (Machine(cuda=False), "bfloat16", ON_CPU),
        (Machine(cuda=False, compiler=True), "bfloat16", dataclasses.replace(ON_CPU, elementwise="compiled")),
        (Machine(cuda=False, compiler=True), "float16", ON_CPU),
        (Machine(cuda=False, triton=True, flash_attention=True), "bfloat16", ON_CPU),
        (H100, "bfloat16", Choices("flash_attention_2", "trl_fused", "paged_adamw_8bit", True)),
        (H100, "float16", Choices("flash_attention_2", "trl_fused", "paged_adamw_8bit", False)),
        (H100, "float32", Choices("sdpa", "trl_fused", "paged_adamw_8bit", False)),
        (
            dataclasses.replace(H100, flash_attention=False),
            "bfloat16",
            Choices("sdpa", "trl_fused", "paged_adamw_8bit", True),
        ),
        (
            dataclasses.replace(H100, cuda_capability=(8, 0)),
            "bfloat16",
            Choices("flash_attention_2", "trl_fused", "paged_adamw_8bit", True),
        ),
        (
            dataclasses.replace(H100, cuda_capability=(7, 5), bf16=False),
            "bfloat16",
            Choices("sdpa", "trl_fused", "paged_adamw_8bit", False),
        ),
        (
            dataclasses.replace(H100, triton=False),
            "bfloat16",
            Choices("flash_attention_2", "labelled", "paged_adamw_8bit", True),
        ),
        (
            dataclasses.replace(H100, bitsandbytes=False),
            "bfloat16",
            Choices("flash_attention_2", "trl_fused", "adamw_torch_fused", True),
        ),
    ],
)
def test_choices_follow_from_the_machine(machine: Machine, dtype: str, expected: Choices) -> None:
    assert choose(machine, tiny_recipe(Path("base"), base={"dtype": dtype})) == expected


@pytest.mark.parametrize(
    ("changed", "dtype", "batches", "expected"),
    [
        ({}, "bfloat16", "packed", "varlen"),
        ({}, "float16", "packed", "varlen"),
        ({"cuda_capability": (8, 0)}, "bfloat16", "packed", "varlen"),
        ({}, "bfloat16", "padded", "sdpa"),
        ({}, "float32", "packed", "sdpa"),
        ({"cuda_capability": (7, 5)}, "float16", "packed", "sdpa"),
        ({"varlen": False}, "bfloat16", "packed", "sdpa"),
        ({"flash_attention": True}, "bfloat16", "packed", "flash_attention_2"),
        ({"flash_attention": True}, "bfloat16", "padded", "flash_attention_2"),
        ({"cuda": False}, "bfloat16", "packed", "sdpa"),
    ],
)
def test_packed_rows_have_the_kernel_of_torch_where_the_package_is_missing(
    changed: dict[str, object], dtype: str, batches: str, expected: str
) -> None:
    machine = dataclasses.replace(H100, **{"flash_attention": False, "varlen": True, **changed})
    recipe = tiny_recipe(Path("base"), base={"dtype": dtype}, training={"batches": batches})
    found = choose(machine, recipe)
    assert found.attention == found.named()["attention"] == expected


@pytest.mark.parametrize(
    "sections",
    [{"adapter": {"dropout": 0.1}}, {"adapter": {"variant": "dora"}}, {"training": {"kernels": "plain"}}],
    ids=["dropout", "DoRA", "a recipe that says so"],
)
def test_layers_are_the_libraries_own(sections: dict[str, object]) -> None:
    found = choose(Machine(cuda=False, compiler=True), tiny_recipe(Path("base"), **sections))
    assert (found.layers, found.elementwise) == ("plain", "torch")


def test_choices_have_names() -> None:
    named = {
        "attention": "sdpa",
        "layers": "fused, torch",
        "loss": "labelled",
        "optimizer": "adamw_torch_fused",
        "autocast": "off",
    }
    assert ON_CPU.named() == named
    on_h100 = choose(H100, tiny_recipe(Path("base"), base={"dtype": "bfloat16"})).named()
    assert (on_h100["autocast"], on_h100["layers"]) == ("bfloat16", "plain")


@pytest.mark.parametrize("built", [False, True])
def test_this_machine_is_looked_at(monkeypatch: pytest.MonkeyPatch, built: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert this_machine() == Machine(cuda=False, compiler=compiler_version() is not None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built)
    assert this_machine() == Machine(
        cuda=True,
        cuda_capability=(8, 6),
        bf16=True,
        triton=find_spec("triton") is not None,
        flash_attention=find_spec("flash_attn") is not None,
        varlen=built,
    )


TRAINING = {
    "learning_rate": 3e-3,
    "schedule": "linear",
    "weight_decay": 0.02,
    "max_grad_norm": 0.7,
    "gradient_checkpointing": True,
    "warmup_fraction": 0.25,
}


def test_every_value_that_matters_is_passed(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, training=TRAINING)
    arguments = build_arguments(recipe, tmp_path, ON_CPU, cuda=False)
    expected = {
        "output_dir": str(tmp_path),
        "seed": 7,
        "data_seed": 7,
        "use_cpu": True,
        "bf16": False,
        "fp16": False,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch_fused",
        "weight_decay": 0.02,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 0.7,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "average_tokens_across_devices": True,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "ddp_find_unused_parameters": False,
        "max_length": None,
        "packing": False,
        "padding_free": False,
        "completion_only_loss": False,
        "assistant_only_loss": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "loss_type": "nll",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": [],
        "run_name": "tiny",
        "dataloader_num_workers": 0,
        "neftune_noise_alpha": None,
        "use_liger_kernel": False,
        "push_to_hub": False,
    }
    found = {name: getattr(arguments, name) for name in expected}
    assert found == expected


def test_no_value_rests_on_a_default_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Move the defaults that decide a result, as upstream does between minors: the arguments stay as they are."""
    before = build_arguments(tiny_recipe(tmp_path), tmp_path, ON_CPU, cuda=False)
    moved = {
        "learning_rate": 9.0,
        "lr_scheduler_type": "polynomial",
        "optim": "sgd",
        "weight_decay": 9.0,
        "adam_beta1": 0.1,
        "adam_beta2": 0.1,
        "adam_epsilon": 0.1,
        "max_grad_norm": 99.0,
        "seed": 1234,
        "data_seed": 1234,
        "bf16": True,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3,
        "gradient_checkpointing": True,
        "average_tokens_across_devices": False,
        "max_length": 3,
        "packing": True,
        "padding_free": True,
        "completion_only_loss": True,
        "assistant_only_loss": True,
        "loss_type": "dft",
        "logging_steps": 500,
        "logging_strategy": "no",
        "logging_nan_inf_filter": True,
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "remove_unused_columns": True,
        "use_liger_kernel": True,
        "neftune_noise_alpha": 5.0,
        "push_to_hub": True,
        "disable_tqdm": False,
        "run_name": "moved",
    }
    plain = SFTConfig.__init__

    def with_other_defaults(self: SFTConfig, **values: object) -> None:
        plain(self, **{**moved, **values})

    monkeypatch.setattr(SFTConfig, "__init__", with_other_defaults)
    after = build_arguments(tiny_recipe(tmp_path), tmp_path, ON_CPU, cuda=False)
    assert {name: getattr(after, name) for name in moved} == {name: getattr(before, name) for name in moved}


@pytest.mark.parametrize(("ours", "theirs"), SCHEDULES.items())
def test_schedules_are_the_ones_named(tmp_path: Path, ours: str, theirs: str) -> None:
    arguments = build_arguments(tiny_recipe(tmp_path, training={"schedule": ours}), tmp_path, ON_CPU, cuda=False)
    assert arguments.lr_scheduler_type == theirs


def test_tracker_is_passed_on(tmp_path: Path) -> None:
    arguments = build_arguments(tiny_recipe(tmp_path, tracking="tensorboard"), tmp_path, ON_CPU, cuda=False)
    assert arguments.report_to == ["tensorboard"]


@pytest.mark.parametrize(
    ("examples", "fraction", "devices", "expected"),
    [(64, 0.25, 1, (16, 4, 4)), (64, 0.25, 2, (16, 2, 4)), (64, 0.0, 1, (16, 4, 0)), (4, 0.5, 4, (1, 1, 0))],
)
def test_plan_decides_steps_accumulation_and_warm_up(
    tmp_path: Path, examples: int, fraction: float, devices: int, expected: tuple[int, int, int]
) -> None:
    recipe = tiny_recipe(tmp_path, training={"warmup_fraction": fraction})
    arguments = build_arguments(recipe, tmp_path, ON_CPU, cuda=False)
    apply_plan(arguments, plan_batches([10] * examples, 40, 10, devices, 1, 0), recipe, devices)
    assert (arguments.max_steps, arguments.gradient_accumulation_steps, arguments.warmup_steps) == expected
