"""A thin subclass of TRL's trainer: batches come from our plan, and the loss from the labelled positions alone.

TRL 1.16 computes the loss of every position where there is no Triton, at twenty times the cost; with Triton its own
kernel is used. Everything else (optimizer, schedule, accumulation, clipping, processes, trackers) is TRL's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.trainer_callback import PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from evaluation.batching import pad_examples
from evaluation.model import forget_embeddings
from evaluation.rendering import IGNORE, Example
from finetune.batch_cutting import Batch
from finetune.batches import BatchPlan, MicroBatch
from finetune.capabilities import Choices
from finetune.elementwise_library import load_elementwise
from finetune.example_files import example_at, read_lengths
from finetune.fused_model import FusedModel
from finetune.memory_fit import ALIKE, Computing, MemoryFit, largest_micro_batch, tokens_of
from finetune.packing import pack_examples
from finetune.training_forward import sum_loss_in_forward
from finetune.training_guards import NotFinite, check_gradients, trainable_parameters
from finetune.training_records import AS_PLANNED, MemorySetting


@dataclass(frozen=True)
class Batching:
    """How one process gets its batches."""

    plan: BatchPlan
    rank: int
    world_size: int
    padding: int
    packed: bool
    """Whether a micro-batch is one row of examples that do not see each other."""
    memory: MemorySetting = AS_PLANNED
    """What a training that this one goes on from has settled on."""


class RecipeTrainer(SFTTrainer):
    """TRL's SFTTrainer with our batches and our loss."""

    def __init__(
        self,
        model: Any,
        args: SFTConfig,
        train_dataset: Any,
        batching: Batching,
        choices: Choices,
        **trl: Any,
    ):
        """Take a model with its adapter, and examples with `input_ids` and `labels`; `trl` goes to TRL as it is."""
        self._adapted = model
        self.batching = batching
        self.examples = train_dataset
        self.memory = MemoryFit(batching.memory, args.gradient_checkpointing, batching.world_size)
        self._choices = choices
        self._tried_largest = False
        self._done = 0
        self._restore: Callable[[], None] | None = None
        self.write_checkpoint: Callable[[], None] | None = None
        """Called after a step that is to be kept, when it has been logged."""
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            data_collator=_Packing() if batching.packed else _Padding(batching.padding),
            **trl,
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # the loss is a sum over all labelled tokens of the step
        self._fused: FusedModel | None = None
        if choices.layers == "fused":
            elementwise = load_elementwise(compiled=choices.elementwise == "compiled")
            self._fused = FusedModel(model, elementwise, recompute=args.gradient_checkpointing)
        if choices.loss == "labelled":
            sum_loss_in_forward(model.get_base_model(), self._fused)

    def go_on_after(self, step: int, restore: Callable[[], None]) -> None:
        """Start after a step; `restore` is called when optimizer and schedule are there."""
        self._done, self._restore = step, restore

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this process's micro-batches that are left, in the order of the plan."""
        batching = self.batching
        done = self._done * self.args.gradient_accumulation_steps
        return DataLoader(
            cast(Any, self.train_dataset),
            batch_sampler=batching.plan.for_rank(batching.rank, batching.world_size)[done:],
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _init_training_state(self, *planned: Any) -> tuple[int, int]:
        # The loader has only the steps that are left, so nothing is skipped; training ends by the number of steps.
        begun: tuple[int, int] = super()._init_training_state(*planned)
        self.state.global_step = self._done
        return begun

    def _prepare_for_training(self, *planned: Any) -> tuple[Any, Any]:
        prepared: tuple[Any, Any] = super()._prepare_for_training(*planned)  # type: ignore[no-untyped-call]
        if self._restore is not None:
            self._restore()
        return prepared

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # In the place of transformers' own, which writes pickles, file by file under the final name.
        assert self.write_checkpoint is not None
        self.write_checkpoint()

    def create_optimizer(self, *given: Any) -> torch.optim.Optimizer:
        """Create the optimizer, and let go of the embeddings that transformers notes for it."""
        optimizer = super().create_optimizer(*given)
        forget_embeddings()
        return optimizer

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the micro-batch's share of the step's mean loss per labelled token.

        Raises:
            NotFinite: the loss; no update has been made with it.
        """
        if self._choices.loss == "trl_fused":
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        else:
            # DDP averages gradients over processes, and the divisor counts the tokens of all of them.
            loss = model(**inputs).loss / num_items_in_batch * self.accelerator.num_processes
        if not torch.isfinite(loss):
            raise NotFinite(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}; no update was made with it",
                self.state.global_step + 1,
                self.memory.position,
                hint="lower training.learning_rate, raise training.warmup_fraction, or use base.dtype: float32",
            )
        return loss

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        """Compute a micro-batch, in pieces where memory asks for it; before the first, find out what fits."""
        step, computing = self.state.global_step, self._computing(model, num_items_in_batch)
        if not self._tried_largest:
            self._tried_largest = True
            loss = self._found_out(model, inputs, computing)
            if loss is not None:
                return loss
        return self.memory.compute(step, inputs, computing)

    def floating_point_ops(self, inputs: Batch) -> int:  # nothing here reads it
        """Return nothing: transformers counts all parameters anew at every step for it, a hundredth of a step."""
        return 0

    def _found_out(self, model: Any, first: Batch, computing: Computing) -> Tensor | None:
        """Find out what fits; return the loss of the first micro-batch where it was its own trial.

        A run that is gone on with does as it would have done without the interruption.
        """
        if self._begins_with_the_largest():
            if self._done:
                if self.memory.setting.gradient_checkpointing:
                    self._checkpoint()
                return None
            moments = self._moments()
            loss = self.memory.compute_first(self.state.global_step, first, computing)
            del moments
            if loss is not None:
                return loss
        self._try_largest(model)
        return None

    def _begins_with_the_largest(self) -> bool:
        """Say whether the plan's first micro-batch is its own trial: on a CPU, whose memory is seldom quite full.

        Several processes cannot begin a step again, so that they try in any case.
        """
        batching = self.batching
        if self.args.device.type != "cpu" or batching.world_size > 1:
            return False
        planned, lengths = batching.plan.micro_batches, read_lengths(self.examples).tolist()
        largest = largest_micro_batch(planned, lengths, batching.packed)
        most = tokens_of(largest, lengths, batching.packed)
        return tokens_of(planned[0], lengths, batching.packed) >= ALIKE * most

    def _try_largest(self, model: Any) -> None:
        lengths = read_lengths(self.examples).tolist()
        largest = largest_micro_batch(self.batching.plan.micro_batches, lengths, self.batching.packed)
        batch, longest = self._collated(largest), self._collated((lengths.index(max(lengths)),))
        labelled = torch.tensor(max(1, int((batch["labels"] != IGNORE).sum())), device=self.args.device)
        moments = self._moments()
        self.memory.try_out(batch, longest, self._computing(model, labelled), self._in_all_processes)
        del moments
        self._metrics["train"].clear()  # what TRL counts beside its own loss

    def _moments(self) -> list[Tensor]:
        """Take the memory of the two numbers that AdamW keeps for each that is trained, from the first update on."""
        number = torch.uint8 if self._choices.optimizer == "paged_adamw_8bit" else torch.float32
        return [torch.empty_like(p, dtype=number) for p in self._trained.values() for _ in range(2)]

    def _collated(self, indices: MicroBatch) -> Batch:
        examples = [example_at(self.examples, i) for i in indices]
        rows = [{"input_ids": list(one.input_ids), "labels": list(one.labels)} for one in examples]
        return cast(Batch, self.data_collator(rows))

    def _computing(self, model: Any, num_items_in_batch: Any) -> Computing:
        plain: Callable[..., Tensor] = super().training_step
        return Computing(
            add_gradients=lambda piece: plain(model, dict(piece), num_items_in_batch),
            without_sync=functools.partial(self.accelerator.no_sync, model),
            drop_gradients=model.zero_grad,
            checkpoint=self._checkpoint,
        )

    @functools.cached_property
    def _trained(self) -> dict[str, torch.nn.Parameter]:
        return trainable_parameters(self._adapted)

    def _checkpoint(self) -> None:
        if self._fused is not None:
            self._fused.recompute = True
        else:
            self._adapted.activation_checkpointing_enable({"use_reentrant": False})

    def _in_all_processes(self, holds: bool) -> bool:
        if self.batching.world_size == 1:
            return holds
        failed = torch.tensor(int(not holds), device=self.args.device)
        torch.distributed.all_reduce(failed)
        return not failed.item()

    def _clip_grad_norm(self, model: Any) -> Any:
        """Check the gradients before clipping spreads what is not finite to all of them."""
        check_gradients(self._trained, self.state.global_step + 1)
        return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class _Packing:
    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        return pack_examples([Example(tuple(row["input_ids"]), tuple(row["labels"])) for row in rows])


@dataclass(frozen=True)
class _Padding:
    padding: int

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        examples = [Example(tuple(row["input_ids"]), tuple(row["labels"])) for row in rows]
        ids_BT, labels_BT, mask_BT = pad_examples(examples, self.padding)
        return {"input_ids": ids_BT, "labels": labels_BT, "attention_mask": mask_BT}
