"""The one translation of a recipe into TRL's words. Every value that matters is passed: upstream defaults move."""

from __future__ import annotations

import math
from pathlib import Path

from trl.trainer.sft_config import SFTConfig

from finetune.batches import BatchPlan
from finetune.capabilities import Choices
from finetune.recipe import Recipe

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


def build_arguments(recipe: Recipe, folder: Path, choices: Choices, *, cuda: bool) -> SFTConfig:
    """Build TRL's configuration; the lengths that depend on the batch plan are set by `apply_plan`.

    Building it also joins the process group, where there is one.
    """
    training = recipe.training
    return SFTConfig(
        output_dir=str(folder),
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=not cuda,
        bf16=choices.bf16_autocast,
        fp16=False,
        learning_rate=training.learning_rate,
        lr_scheduler_type=SCHEDULES[training.schedule],
        optim=choices.optimizer,
        weight_decay=training.weight_decay,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        max_grad_norm=training.max_grad_norm,
        num_train_epochs=1,
        per_device_train_batch_size=1,
        average_tokens_across_devices=True,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        max_length=None,
        packing=False,
        padding_free=False,
        completion_only_loss=False,
        assistant_only_loss=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        loss_type="nll",
        logging_steps=1,
        logging_strategy="steps",
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to=[recipe.tracking] if recipe.tracking else [],
        run_name=recipe.name,
        disable_tqdm=True,
        dataloader_num_workers=0,
        neftune_noise_alpha=None,
        use_liger_kernel=False,
        push_to_hub=False,
    )


def apply_plan(arguments: SFTConfig, plan: BatchPlan, recipe: Recipe, world_size: int) -> None:
    """Set what follows from the batch plan: steps, accumulation, warm-up."""
    arguments.max_steps = plan.steps
    arguments.gradient_accumulation_steps = plan.micro_batches_per_step // world_size
    # The first step of a warm-up has rate 0, so a single step goes without.
    arguments.warmup_steps = min(math.ceil(plan.steps * recipe.training.warmup_fraction), plan.steps - 1)
