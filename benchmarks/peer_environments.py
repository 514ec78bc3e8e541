"""A virtual environment for each peer, with pinned versions, in a cache folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"
"""The version that this project runs on, for all: what differs is what is made of it."""
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "trl": ("trl==1.16.0", "transformers==5.23.0", "peft==0.21.2", "accelerate==1.15.0", "datasets==5.2.0"),
    "llamafactory": (
        "llamafactory==0.9.5",
        "transformers==5.6.0",  # this and the rest: the newest that it takes
        "trl==0.24.0",
        "peft==0.18.1",
        "accelerate==1.11.0",
        "datasets==4.0.0",
        "torchvision==0.28.0",
        "torchaudio==2.11.0",
    ),
    "litgpt": ("litgpt==0.5.13", "lightning==2.6.6", "requests==2.34.2"),  # jsonargparse asks for requests at the start
    "axolotl": ("axolotl==0.19.0",),  # the last for Python 3.11
}


class NotInstalled(Exception):
    """A peer's environment cannot be made; says why."""


@dataclass(frozen=True)
class PeerEnvironment:
    """Where a peer lives, and what is asked of pip."""

    peer: str
    cache: Path
    any_build: bool = False
    """Whether pip may fetch a build of torch for GPUs, which is several gigabytes."""

    @property
    def folder(self) -> Path:
        """The virtual environment."""
        return self.cache / self.peer

    @property
    def requirements(self) -> tuple[str, ...]:
        """All that is named in one call of pip, so that it cannot choose another torch."""
        return (TORCH, *REQUIREMENTS[self.peer])

    def command(self, name: str) -> str:
        """Return the path of a command of the environment."""
        return str(self.folder / "bin" / name)

    @property
    def is_made(self) -> bool:
        """Whether just these requirements were installed to the end."""
        return self._mark.exists() and self._mark.read_text(encoding="utf-8") == self._marked

    def make(self) -> None:
        """Make the environment, if it is not there.

        Raises:
            NotInstalled: pip finds no such versions, or only a build for GPUs.
        """
        if self.is_made:
            return
        if not self.any_build:
            refuse_gpu_build(self._planned())
        shutil.rmtree(self.folder, ignore_errors=True)
        self.cache.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "venv", str(self.folder)], check=True)
        _pip(self.command("python"), "install", "--no-compile", *self.requirements)
        if self.peer == "llamafactory" and not self.any_build:
            self._take_out_gpu_libraries()
        self._mark.write_text(self._marked, encoding="utf-8")

    def versions(self) -> str:
        """List every package with its version."""
        return _pip(self.command("python"), "freeze")

    def _take_out_gpu_libraries(self) -> None:
        # torchvision and torchaudio are published as builds for GPUs, which do not load beside a torch for CPUs. No
        # training on text uses them, but LLaMA-Factory imports the second, and transformers the first where it is.
        _pip(self.command("python"), "uninstall", "--yes", "torchvision")
        for library in self.folder.glob("lib/python*/site-packages/torchaudio/lib/*.so"):
            library.unlink()

    @property
    def _mark(self) -> Path:
        return self.folder / "requirements.txt"

    @property
    def _marked(self) -> str:
        return "\n".join(self.requirements) + "\n"

    def _planned(self) -> list[str]:
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch) / "report.json"
            options = ("--dry-run", "--ignore-installed", "--report", str(report))
            _pip(sys.executable, "install", *options, *self.requirements)
            return [item["metadata"]["name"] for item in json.loads(report.read_bytes())["install"]]


def refuse_gpu_build(names: list[str]) -> None:
    """Refuse a plan of pip that holds the libraries of CUDA.

    Raises:
        NotInstalled: it does.
    """
    # The wheels of CUDA's libraries, which the build of torch for GPUs requires and the one for CPUs does not.
    found = [name for name in names if name.startswith("nvidia-c")]
    if found:
        raise NotInstalled(
            f"pip would fetch a build of torch for GPUs ({found[0]}, …): name an index of CPU builds in pip's"
            " configuration, or add --any-build"
        )


def _pip(python: str, *arguments: str) -> str:
    command = [python, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""})
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotInstalled("; ".join(lines) or done.stderr.strip()[-300:])
    return done.stdout
