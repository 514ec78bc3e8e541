"""Fine-tunes LLaMA models from one recipe and proves every claim of the report."""
