"""Scores any Hugging Face causal language model, with or without an adapter, on typed tasks."""
