"""Contracts with transformers' trainer, TRL and accelerate: how the loss is counted, and which hooks are called."""

from __future__ import annotations

import dataclasses
import inspect
from contextlib import nullcontext
from types import FunctionType, SimpleNamespace
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, TrainerControl, TrainerState
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from finetune.upstream import Contract

VOCABULARY = 16
flash_attention_for_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
"""What `evaluation.token_loss` computes the loss of bf16 with."""


def small_llama() -> LlamaForCausalLM:
    """Build a model of one layer that computes in microseconds."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        initializer_range=1.0,
    )
    return cast(LlamaForCausalLM, LlamaForCausalLM(config).eval())


def _labels_are_counted_over_the_step() -> bool:
    """Two micro-batches with 2 and 1 predicted tokens; the first position of a row predicts nothing and is not one."""
    args = SimpleNamespace(average_tokens_across_devices=True, world_size=1, n_gpu=1)
    trainer = SimpleNamespace(
        model_accepts_loss_kwargs=True,
        compute_loss_func=None,
        _loss_shifts_labels=True,
        args=args,
        get_tp_size=lambda: 1,
        get_cp_size=lambda: 1,
        get_sp_size=lambda: 1,
    )
    batches = [{"labels": torch.tensor([[3, -100, 5, 6]])}, {"labels": torch.tensor([[-100, -100, -100, 7]])}]
    count = Trainer._get_num_items_in_batch(cast(Any, trainer), batches, torch.device("cpu"))
    return float(count or 0) == 3.0


def _loss_of_a_step(*, accepts: bool) -> float:
    """Return what `training_step` makes of a loss of 6 where a step has 3 micro-batches, and what it passes back."""
    weight = torch.ones((), requires_grad=True)
    told: list[int] = []

    def compute_loss(model: object, inputs: object, num_items_in_batch: int = 0) -> torch.Tensor:
        told.append(num_items_in_batch)
        return weight * 6

    trainer = SimpleNamespace(
        model_accepts_loss_kwargs=accepts,
        loss_is_scaled_for_ga=None,
        compute_loss_func=None,
        current_gradient_accumulation_steps=3,
        optimizer=None,
        args=SimpleNamespace(torch_empty_cache_steps=None, optim="adamw_torch", n_gpu=1),
        accelerator=SimpleNamespace(distributed_type=DistributedType.NO, backward=lambda loss: loss.backward()),
        _prepare_context_parallel_inputs=lambda model, inputs: (nullcontext, inputs),
        _prepare_inputs=lambda inputs: inputs,
        compute_loss_context_manager=nullcontext,
        compute_loss=compute_loss,
    )
    loss = Trainer.training_step(cast(Any, trainer), torch.nn.Identity(), {}, cast(Any, 5))
    assert told == [5], "compute_loss is not told the number of tokens"
    assert weight.grad is not None
    return float(loss) if float(loss) == float(weight.grad) else float("nan")


def _loss_is_divided_once() -> bool:
    return (_loss_of_a_step(accepts=True), _loss_of_a_step(accepts=False)) == (6.0, 2.0)


def _compute_loss_is_told_the_tokens() -> bool:
    wanted = ["model", "inputs", "return_outputs", "num_items_in_batch"]
    own = list(inspect.signature(SFTTrainer.compute_loss).parameters)
    return own[1:] == wanted and list(inspect.signature(Trainer.compute_loss).parameters)[1:] == wanted


class _Heard(TrainerCallback):
    def __init__(self) -> None:
        self.times = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times += 1


def _callbacks_hear_of_the_update() -> bool:
    heard = _Heard()
    handler = CallbackHandler([DefaultFlowCallback(), heard], cast(Any, None), None, None, None)
    handler.on_pre_optimizer_step(cast(Any, None), TrainerState(), TrainerControl())
    return heard.times == 1 and "on_pre_optimizer_step" in _names_used_by(Trainer)


def _batches_come_from_the_hook() -> bool:
    return "get_train_dataloader" in _names_used_by(Trainer) and "get_train_dataloader" not in vars(SFTTrainer)


def _number_of_gpus_can_be_set() -> bool:
    return "_n_gpu" in cast(Any, TrainingArguments.n_gpu).fget.__code__.co_names


def _head_is_patched_on_the_instance() -> bool:
    """TRL replaces `forward` on the model, so that ours, put there later, is the one that is called."""
    model = small_llama()
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    return "forward" in model.__dict__ and "add_fused_lm_head" in SFTTrainer.__init__.__code__.co_names


def _prepared_rows_are_left_alone() -> bool:
    names = {field.name for field in dataclasses.fields(SFTConfig)}
    return "dataset_kwargs" in names and "skip_prepare_dataset" in SFTTrainer.__init__.__code__.co_consts


def _attention_gives_its_normalizer() -> bool:
    """One query of zeros on 8 keys: the logarithm of 8, and the mean of the values."""
    q, v = torch.zeros(1, 1, 1, 4).bfloat16(), torch.eye(8, 4)[None, None].bfloat16()
    mean, normalizer = flash_attention_for_cpu(q, v, v, 0.0, False, scale=1.0)
    right = torch.allclose(mean.float(), torch.full((1, 1, 1, 4), 0.125))
    return right and normalizer.dtype == torch.float32 and abs(float(normalizer) - 2.0794415) < 1e-4


def _processes_are_counted() -> bool:
    return isinstance(vars(Accelerator).get("num_processes"), property)


def _names_used_by(kind: type) -> set[str]:
    """Return the names that the methods of a class use."""
    methods = [value for value in vars(kind).values() if isinstance(value, FunctionType)]
    return {name for method in methods for name in method.__code__.co_names}


TRAINING_CONTRACTS = (
    Contract(
        "tokens_of_the_step",
        "transformers",
        "Trainer counts the predicted tokens of all micro-batches of a step (_get_num_items_in_batch)",
        _labels_are_counted_over_the_step,
    ),
    Contract(
        "divided_once",
        "transformers",
        "where model_accepts_loss_kwargs is set, training_step leaves the loss undivided; it passes the tokens on",
        _loss_is_divided_once,
    ),
    Contract(
        "compute_loss_signature",
        "trl",
        "compute_loss(model, inputs, return_outputs, num_items_in_batch) is what Trainer and SFTTrainer have",
        _compute_loss_is_told_the_tokens,
    ),
    Contract(
        "update_hook",
        "transformers",
        "on_pre_optimizer_step is called before the update",
        _callbacks_hear_of_the_update,
    ),
    Contract(
        "batch_hook",
        "trl",
        "batches come from get_train_dataloader, which SFTTrainer does not replace",
        _batches_come_from_the_hook,
    ),
    Contract(
        "gpu_count", "transformers", "TrainingArguments.n_gpu reads _n_gpu, which we set", _number_of_gpus_can_be_set
    ),
    Contract(
        "head_patch",
        "trl",
        "SFTTrainer replaces `forward` on the model itself (add_fused_lm_head)",
        _head_is_patched_on_the_instance,
    ),
    Contract(
        "prepared_rows",
        "trl",
        "dataset_kwargs={'skip_prepare_dataset': True} leaves input_ids and labels alone",
        _prepared_rows_are_left_alone,
    ),
    Contract(
        "attention_normalizer",
        "torch",
        "_scaled_dot_product_flash_attention_for_cpu returns the output and, in fp32, the log-sum-exp of the scores",
        _attention_gives_its_normalizer,
    ),
    Contract(
        "process_count", "accelerate", "Accelerator.num_processes is the number of processes", _processes_are_counted
    ),
)
