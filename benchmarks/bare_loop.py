"""A LoRA training loop with nothing around it: the floor that a toolkit must beat.

    python -m benchmarks.bare_loop MODEL rows.prompt_completion.jsonl [--nf4] [--tokens 1024] [--save FOLDER]

Documents are packed first-fit and do not see each other, logits are computed only where labels are, nothing is padded.
Its allocator is tuned by the variables of `peer_contenders.LOOP_ALLOCATOR`. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaForCausalLM

from evaluation.model import keep_cpu_weights_unpacked


@dataclass
class Pack:
    """Documents in one row, one after another."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)

    def add(self, prompt: list[int], answer: list[int]) -> None:
        """Add a document, whose positions begin at 0."""
        size = len(prompt) + len(answer)
        self.spans.append((len(self.ids), len(self.ids) + size))
        self.ids += prompt + answer
        self.positions += range(size)
        self.labels += [-100] * len(prompt) + answer


class DocumentAttention:
    """Causal attention within each of the current pack's documents."""

    spans: list[tuple[int, int]]

    def __call__(
        self,
        module: torch.nn.Module,  # noqa: ARG002 - transformers' signature
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,  # noqa: ARG002 - the spans say it
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """Take (1, heads, tokens, size) and return (1, tokens, heads, size), in the signature of transformers."""
        parts = [
            F.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, start:end],
                value[:, :, start:end],
                is_causal=True,
                scale=scaling,
                enable_gqa=True,
            )
            for start, end in self.spans
        ]
        return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def load_packs(rows: Path, model: Path, tokens: int) -> list[Pack]:
    """Read rows of prompt and completion and put each, longest first, into the first pack with room for it."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    documents = []
    for line in rows.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        documents.append([tokenizer(row[part], add_special_tokens=False)["input_ids"] for part in row])
    packs: list[Pack] = []
    for prompt, answer in sorted(documents, key=lambda parts: -sum(map(len, parts))):
        fitting = (pack for pack in packs if len(pack.ids) + len(prompt) + len(answer) <= tokens)
        pack = next(fitting, None)
        if pack is None:
            packs.append(pack := Pack())
        pack.add(prompt, answer)
    return packs


def load_adapted(model: Path, nf4: bool) -> PeftModel:
    """Load the base with a new LoRA of rank 16 on all linear layers."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=torch.bfloat16,
        attn_implementation="documents",
        quantization_config=quantization if nf4 else None,
        local_files_only=True,
    )
    keep_cpu_weights_unpacked(base)
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base, config)


def loss_of(model: PeftModel, pack: Pack) -> torch.Tensor:
    """Return the mean negative log-likelihood of a pack's labelled tokens."""
    causal_lm = cast(LlamaForCausalLM, model.get_base_model())
    hidden = causal_lm.model(
        input_ids=torch.tensor([pack.ids]), position_ids=torch.tensor([pack.positions]), use_cache=False
    ).last_hidden_state[0]
    labels = torch.tensor(pack.labels)[1:]
    labelled = labels != -100
    logits = F.linear(hidden[:-1][labelled].to(causal_lm.lm_head.weight.dtype), causal_lm.lm_head.weight)
    return F.cross_entropy(logits.float(), labels[labelled])


def main() -> None:
    """Train once over the rows and print tokens, seconds and loss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--save", type=Path, help="folder for the adapter, written when the time is taken")
    given = parser.parse_args()
    attention = DocumentAttention()
    AttentionInterface.register("documents", attention)
    packs = load_packs(given.rows, given.model, given.tokens)
    model = load_adapted(given.model, given.nf4)
    model.train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=2e-4)
    losses = []
    began = time.perf_counter()
    for pack in packs:
        attention.spans = pack.spans
        loss = loss_of(model, pack)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    seconds = time.perf_counter() - began
    if given.save:
        model.save_pretrained(str(given.save))
    tokens = sum(len(pack.ids) for pack in packs)
    mean = sum(losses) / len(losses)
    print(json.dumps({"steps": len(packs), "tokens": tokens, "seconds": seconds, "mean_loss": mean}))


if __name__ == "__main__":
    main()
