"""Memory that others have published beside what the planner predicts of it: `python benchmarks/plan_published.py`.

Each row states its settings as far as they are published. Other tools hold other things than this one, so a row says
how they compute: in which type adapters and their states are, what the loss holds, whether layers are computed again.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune.model_shape import PROJECTIONS
from finetune.plan_activations import ActivationPath, Held, Layers
from finetune.plan_memory import Loss, OptimizerState, Setup, predict
from finetune.published_shapes import PUBLISHED
from finetune.recipe import Projection

GIB = 2**30
QV: tuple[Projection, ...] = ("q_proj", "v_proj")
MLP: tuple[Projection, ...] = ("gate_proj", "up_proj", "down_proj")
NO_K = tuple(name for name in PROJECTIONS if name != "k_proj")

PEFT = "https://github.com/huggingface/peft/tree/main/method_comparison/MetaMathQA/results"
LITGPT = "https://github.com/Lightning-AI/litgpt/blob/main/config_hub/finetune/README.md"
TORCHTUNE = "https://github.com/pytorch/torchtune/blob/0031bfb080bd35ec533c412df883cf2bf7bf7fe4/README.md"


@dataclass(frozen=True)
class Row:
    """A published peak."""

    tool: str
    source: str
    base: str
    settings: str
    """As published, and what had to be assumed, in brackets."""
    gigabytes: float
    """10⁹ bytes, as published (GiB converted)."""
    setup: Setup


@dataclass(frozen=True)
class Tool:
    """How a tool computes."""

    path: ActivationPath
    optimizer: OptimizerState
    loss: Loss
    adapter_element: int


PEFT_SCRIPT = Tool("plain", "fp32", "full_logits", 4)
"""method_comparison/MetaMathQA/run.py: bf16 base, fp32 adapters, no autocast, transformers' own loss, AdamW."""
LITGPT_TRUE = Tool("uncast", "bf16", "full_logits", 2)
"""litgpt/finetune/lora.py with bf16-true: everything in bf16, logits of all positions, no layer computed again."""
TORCHTUNE_RECIPE = Tool("uncast", "bf16", "labelled", 2)
"""recipes/lora_finetune_single_device.py: everything in bf16, the loss in chunks."""


def setup(
    tool: Tool,
    base: str,
    adapter: tuple[tuple[Projection, ...], int],
    held: Held,
    *,
    nf4: bool = False,
    checkpointing: bool = False,
) -> Setup:
    """Build what is predicted: `adapter` is the targets and the rank."""
    layers = Layers(
        PUBLISHED[base].shape, *adapter, dora=False, dropout=False, element=2, path=tool.path, dropout_mask=1
    )
    return Setup(
        layers=layers,
        held=held,
        device="cuda",
        nf4="single" if nf4 else "no",
        checkpointing=checkpointing,
        optimizer=tool.optimizer,
        loss=tool.loss,
        adapter_element=tool.adapter_element,
        stored_bytes=0,
    )


def rows() -> tuple[Row, ...]:
    """Return every row, with what is published of it."""
    metamath = Held(4, 768, masked=True, filled=4 * 768)
    litgpt_one, litgpt_two, litgpt_eight = (Held(count, 512, masked=False, filled=count * 512) for count in (1, 2, 8))
    packed = Held(2, 2048, masked=True, filled=2 * 2048)
    llama2, llama3, llama32 = "Llama-2-7B", "Llama-3-8B", "Llama-3.2-3B"
    said = "batch 4, at most 768 tokens [the longest batch is 4 × 768]"
    alpaca = "at most 512 tokens [the longest row has 512], dropout 0.05 [left out]"
    tune = "batch 2, packed to 2,048, compiled [not modelled]"
    return (
        Row("PEFT", PEFT, llama32, f"LoRA r32 q, v; {said}", 22.274, setup(PEFT_SCRIPT, llama32, (QV, 32), metamath)),
        Row("PEFT", PEFT, llama32, f"LoRA r64 q, v; {said}", 22.540, setup(PEFT_SCRIPT, llama32, (QV, 64), metamath)),
        Row("PEFT", PEFT, llama32, f"LoRA r10 MLP; {said}", 24.713, setup(PEFT_SCRIPT, llama32, (MLP, 10), metamath)),
        Row("LitGPT", LITGPT, llama2, f"LoRA r32 q, v; batch 2, {alpaca}", 19.77,
            setup(LITGPT_TRUE, llama2, (QV, 32), litgpt_two)),
        Row("LitGPT", LITGPT, llama2, f"QLoRA r32 q, v; batch 2, {alpaca}", 13.68,
            setup(LITGPT_TRUE, llama2, (QV, 32), litgpt_two, nf4=True)),
        Row("LitGPT", LITGPT, llama3, f"LoRA r32 q, v; batch 1, {alpaca}", 19.73,
            setup(LITGPT_TRUE, llama3, (QV, 32), litgpt_one)),
        Row("LitGPT", LITGPT, llama3, f"QLoRA r32 q, v; batch 2, {alpaca}", 17.41,
            setup(LITGPT_TRUE, llama3, (QV, 32), litgpt_two, nf4=True)),
        Row("LitGPT", LITGPT, "TinyLlama-1.1B", f"LoRA r32 all; batch 8, {alpaca}, head too [left out]", 13.50,
            setup(LITGPT_TRUE, "TinyLlama-1.1B", (PROJECTIONS, 32), litgpt_eight)),
        Row("torchtune", TORCHTUNE, llama3, f"LoRA on a 4090; {tune} [r8, all but k, checkpointing]", 16.2 * GIB / 1e9,
            setup(TORCHTUNE_RECIPE, llama3, (NO_K, 8), packed, checkpointing=True)),
        Row("torchtune", TORCHTUNE, llama3, f"LoRA on an A6000; {tune} [as above]", 30.3 * GIB / 1e9,
            setup(TORCHTUNE_RECIPE, llama3, (NO_K, 8), packed, checkpointing=True)),
        Row("torchtune", TORCHTUNE, llama3, f"QLoRA on a 4090; {tune} [r8, all, checkpointing]", 7.4 * GIB / 1e9,
            setup(TORCHTUNE_RECIPE, llama3, (PROJECTIONS, 8), packed, nf4=True, checkpointing=True)),
    )  # fmt: skip


def table() -> str:
    """Write the table of docs/planning.md."""
    lines = [
        "| tool | base | settings, and what had to be assumed | published GB | predicted GB | ratio |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows():
        predicted = predict(row.setup).total / 1e9
        figures = f"{row.gigabytes:.2f} | {predicted:.2f} | {predicted / row.gigabytes:.2f}"
        lines.append(f"| [{row.tool}]({row.source}) | {row.base} | {row.settings} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
