"""Task files shipped with the evaluation package."""
