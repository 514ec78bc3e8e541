"""The loss of a trained adapter, by one ruler for all: `python -m benchmarks.adapter_loss MODEL ROWS --adapter FOLDER`.

Plain transformers and peft in float32, one document at a time, the mean over the labelled tokens of all rows. Prints a
line of JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.bare_loop import Pack, load_packs


def load(model: Path, adapter: Path | None, weights: Path | None) -> PreTrainedModel | PeftModel:
    """Load a model in float32, with a PEFT adapter or with other weights for it."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    if weights:
        state = torch.load(weights, weights_only=True, mmap=True)
        missing, unknown = base.load_state_dict(state, strict=False)
        if unknown or set(missing) - {"lm_head.weight"}:
            raise ValueError(f"{weights}: {len(missing)} weights are missing and {len(unknown)} unknown")
        base.tie_weights()
    return PeftModel.from_pretrained(base, str(adapter)) if adapter else base


@torch.inference_mode()
def mean_loss(model: PreTrainedModel | PeftModel, documents: list[Pack]) -> tuple[float, int]:
    """Return the mean negative log-likelihood in nats of all labelled tokens, and how many there are."""
    total, count = 0.0, 0
    for document in documents:
        labels = torch.tensor(document.labels)[1:]
        logits = model(input_ids=torch.tensor([document.ids]), use_cache=False).logits[0, :-1]
        labelled = labels != -100
        total += float(F.cross_entropy(logits[labelled].float(), labels[labelled], reduction="sum"))
        count += int(labelled.sum())
    return total / count, count


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path, help="JSON lines of prompt and completion")
    parser.add_argument("--adapter", type=Path, help="folder of a PEFT adapter")
    parser.add_argument("--weights", type=Path, help="a state dict in the names of transformers")
    given = parser.parse_args()
    documents = load_packs(given.rows, given.model, 1)  # each alone
    loss, tokens = mean_loss(load(given.model, given.adapter, given.weights), documents)
    print(json.dumps({"loss": loss, "tokens": tokens}))


if __name__ == "__main__":
    main()
