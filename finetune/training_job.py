"""What a training process is told: everything it needs, as one JSON file, whichever process it runs in."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from finetune.checkpoints import MadeFrom
from finetune.recipe import Recipe
from finetune.run_directory import RunDirectory


class TrainingJob(BaseModel):
    """A training run to be carried out by `devices` processes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    recipe: Recipe
    run_folder: Path
    base_folder: Path
    base_name: str
    """What the published adapter names as its base; never a local path."""
    base_revision: str | None
    devices: int
    made_from: MadeFrom = MadeFrom()
    """What it is made from; a checkpoint keeps it, and only the same goes on."""
    checkpoint: Path | None = None
    """What an interrupted training goes on from; verified."""

    @property
    def run(self) -> RunDirectory:
        """The run's directory."""
        return RunDirectory(self.run_folder)
