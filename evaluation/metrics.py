"""Which figures a set of outputs yields: means of per-sample scores, and figures of the set as a whole."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.results import Output
from evaluation.scoring import normalized
from evaluation.statistics import Statistic, macro_f1, perplexity
from evaluation.task import TaskKind


def means(outputs: Sequence[Output]) -> dict[str, list[float]]:
    """Collect the per-sample scores by metric: those that every output has."""
    shared = [metric for metric in outputs[0].scores if all(metric in output.scores for output in outputs)]
    return {metric: [output.scores[metric] for output in outputs] for metric in shared}


def set_statistics(kind: TaskKind, outputs: Sequence[Output]) -> dict[str, Statistic]:
    """Build the metrics that are not means over samples: macro-F1 over the options, and perplexity."""
    statistics: dict[str, Statistic] = {}
    references = [output.reference for output in outputs]
    chosen = [output.chosen for output in outputs if output.chosen is not None]
    if len(chosen) == len(outputs):
        statistics["choice_macro_f1"] = macro_f1(references, chosen)
    generated = [output.generated for output in outputs if output.generated is not None]
    if kind == "choose" and len(generated) == len(outputs):
        statistics["exact_match_macro_f1"] = macro_f1(
            [normalized(text) for text in references], [normalized(text) for text in generated]
        )
    measured = [
        (output.reference_nll, output.reference_tokens)
        for output in outputs
        if output.reference_nll is not None and output.reference_tokens is not None
    ]
    if len(measured) == len(outputs):
        statistics["perplexity"] = perplexity([nll for nll, _ in measured], [tokens for _, tokens in measured])
    return statistics
