"""Several examples in one row that do not see each other, and the proof of it on the model that is trained.

transformers makes a block-diagonal mask where positions begin anew, but only without an attention mask and without a
cache: https://github.com/huggingface/transformers/blob/main/src/transformers/masking_utils.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evaluation.rendering import IGNORE, Example
from finetune.errors import MachineError

ISOLATING = frozenset({"sdpa", "eager", "flash_attention_2", "varlen"})
"""Attention implementations that keep packed examples apart: the laws on packing have measured sdpa and eager on a CPU.

flash_attention_2 and varlen take the places where positions begin anew as well. Their kernels need a GPU, and are tried
by `check_isolation`, which looks at every model before it is trained.
"""
PROBE_TOKENS = (13, 17)
"""Lengths of the two probe examples."""


def pack_examples(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Put examples one after another into one row: `input_ids`, `labels` and `position_ids`, each of shape (1, T).

    Positions begin anew with each example, whose first token nothing predicts.
    """
    ids = [i for example in examples for i in example.input_ids]
    labels = [label for example in examples for label in (IGNORE, *example.labels[1:])]
    positions = [i for example in examples for i in range(len(example.input_ids))]
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
    }


def check_isolation(model: PreTrainedModel) -> None:
    """Change an example: the one behind it in the row stays what it was, to the bit, and its own end does not.

    Raises:
        MachineError: the model's attention is not known to keep examples apart, or does not.
    """
    implementation = str(model.config._attn_implementation)
    if implementation not in ISOLATING:
        accepted = ", ".join(sorted(ISOLATING))
        raise _cannot_pack(f"the attention {implementation!r} is not known to keep packed examples apart ({accepted})")
    vocabulary = int(model.config.vocab_size)
    first, second = ([(7 * i + length) % vocabulary for i in range(length)] for length in PROBE_TOKENS)
    changed = [(i + 1) % vocabulary for i in first]
    begun_anew = [(second[0] + 1) % vocabulary, *second[1:]]
    trains = model.training
    model.eval()
    with torch.no_grad():
        hidden, other, own = (
            _second_of(model, row) for row in ([first, second], [changed, second], [first, begun_anew])
        )
    model.train(trains)
    if not torch.equal(hidden, other):
        raise _cannot_pack(f"with the attention {implementation!r} a packed example sees the one before it")
    if torch.equal(hidden[:, -1], own[:, -1]):
        raise _cannot_pack(f"with the attention {implementation!r} a packed example does not see its own beginning")


def _second_of(model: PreTrainedModel, documents: Sequence[Sequence[int]]) -> Tensor:
    row = pack_examples([Example(tuple(tokens), tuple(tokens)) for tokens in documents])
    hidden_BTD = model.base_model(
        input_ids=row["input_ids"].to(model.device),
        position_ids=row["position_ids"].to(model.device),
        use_cache=False,
    ).last_hidden_state
    second: Tensor = hidden_BTD[:, len(documents[0]) :]
    return second


def _cannot_pack(why: str) -> MachineError:
    return MachineError(why, where="training.batches", hint="--set training.batches=padded")
