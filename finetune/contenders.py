"""Which models a run scores: the base, the adapter as it was trained, and the merge as it is shipped."""

from __future__ import annotations

from pathlib import Path

from evaluation.model import ModelSpec, Quantization
from finetune.adapter import adapter_hash
from finetune.bases import ResolvedBase
from finetune.merge_records import MERGE_FILE, MergeProof
from finetune.recipe import Recipe
from finetune.run_directory import RunDirectory
from finetune.scoring import Contender

QUANTIZED_MERGES = {"merged_nf4": Quantization("nf4"), "merged_int8": Quantization("int8")}
"""Contenders that are the merged model stored anew in fewer bits, as `finetune export --quantize` writes it."""


def trained_spec(recipe: Recipe, run: RunDirectory, base_folder: Path) -> ModelSpec:
    """Describe the model exactly as it was trained: the base in its 4-bit form, if any, with the adapter."""
    quantization = recipe.quantization
    return ModelSpec(
        path=base_folder,
        adapter=run.adapter,
        quantization=Quantization(quantization.kind, quantization.double_quant) if quantization else None,
        dtype=recipe.base.dtype,
    )


def contenders(recipe: Recipe, run: RunDirectory, base: ResolvedBase) -> list[Contender]:
    """List the models in the order of the report.

    The base is scored unquantized: it is what a person would use without this run, and the harder one to beat.
    """
    wanted = recipe.evaluation.contenders or ()
    proof = MergeProof.model_validate_json((run.merged / MERGE_FILE).read_bytes())
    return [
        Contender("base", ModelSpec(base.folder, dtype=recipe.base.dtype), base.sha256),
        Contender("adapter", trained_spec(recipe, run, base.folder), base.sha256, adapter_hash(run.adapter)),
        Contender("merged", ModelSpec(run.merged, dtype=recipe.merge.dtype), proof.merged_sha256),
        *(
            Contender(name, ModelSpec(run.merged, None, form, recipe.merge.dtype), proof.merged_sha256)
            for name, form in QUANTIZED_MERGES.items()
            if name in wanted
        ),
    ]
