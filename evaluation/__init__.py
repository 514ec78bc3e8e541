"""Scores any Hugging Face causal language model, with or without an adapter, on typed tasks."""

from evaluation.quiet import report_nothing

report_nothing()  # before a library is imported that would: finetune imports this package, too
