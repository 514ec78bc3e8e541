"""Tokens of the environment in everything that a run writes, prints or starts: they are nowhere."""

from __future__ import annotations

import base64
import os
import random
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from figures import Figures
from tiny_runs import Outcome, Workplace, finetune_process, write_classification

from finetune.publish_private import describe_private

_draw = random.Random(5)


def _drawn(count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(_draw.choice(alphabet) for _ in range(count))


CANARIES = {
    "HF_TOKEN": f"hf_{_drawn(34)}",
    "OPENAI_API_KEY": f"sk-{_drawn(48)}",
    "ANTHROPIC_API_KEY": f"sk-ant-api03-{_drawn(60)}",
    "WANDB_API_KEY": _drawn(40, "0123456789abcdef"),
    "AWS_SECRET_ACCESS_KEY": _drawn(40),
    "GITHUB_TOKEN": f"ghp_{_drawn(36)}",
    "MLFLOW_TRACKING_PASSWORD": _drawn(20),
    "PIP_INDEX_URL": f"http://somebody:{_drawn(24)}@127.0.0.1:9/simple",
}
SECRETS = {
    name: value.rpartition(":")[0].rpartition("@")[0].rpartition(":")[2] if "://" in value else value
    for name, value in CANARIES.items()
}
"""What must be nowhere: of an address, the password in it."""

# Notes what every process that is started is started with; Python imports it at its start.
NOTED = """
import sys
def note(event, arguments):
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn"):
        with open({file!r}, "a") as file:
            file.write(repr(arguments[:2]) + "\\n")
sys.addaudithook(note)
"""


@dataclass(frozen=True)
class Sinks:
    """What was written and printed."""

    place: Workplace
    printed: Mapping[str, Outcome]
    commands: Path
    """A line for every process that was started."""

    def texts(self) -> Iterator[tuple[str, bytes]]:
        """Yield every sink with its bytes."""
        for name, outcome in self.printed.items():
            yield f"{name}, standard output", outcome.stdout.encode()
            yield f"{name}, standard error", outcome.stderr.encode()
        yield "command lines", self.commands.read_bytes()
        for path in sorted(self.place.folder.rglob("*")):
            if path.is_file() and "site" not in path.parts:
                yield path.relative_to(self.place.folder).as_posix(), path.name.encode() + path.read_bytes()


@pytest.fixture(scope="module")
def sinks(tmp_path_factory: pytest.TempPathFactory) -> Sinks:
    """Run, look, export, publish and fail, with tokens in the environment."""
    place = write_classification(tmp_path_factory.mktemp("canaries"), rows=60)
    site, commands = place.folder / "site", place.folder / "commands.txt"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NOTED.format(file=str(commands)), encoding="utf-8")
    paths = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    environment = CANARIES | {"PYTHONPATH": paths, "HOME": str(place.folder / "home")}
    run = str(place.folder / "run")
    cache = ("--cache", str(place.cache))
    publish = ("--base-license", "apache-2.0", "--data-license", "own", "--as", "me/tiny", "--stage-only")
    broken = ("--set", "base.model=pypi:name==1.0/file.gguf", "--set", f"base.sha256={'ab' * 32}")
    asked = {
        "run": place.arguments("--traceback", "--offline", "--set", "training.devices=2"),
        "check": ["check", str(place.recipe), "--here"],
        "show": ["show", str(place.recipe)],
        "preview": ["preview", str(place.recipe), *cache],
        "export": ["export", run, "--gguf", "f16", "--out", str(place.folder / "x.gguf"), "--modelfile"],
        "adapter show": ["adapter", "show", f"{run}/adapter"],
        "serve": ["serve", run, "--dry-run", *cache],
        "publish": ["publish", run, *publish, *cache],
        "refused": ["--traceback", "run", str(place.recipe), "--set", "base.model=/nowhere", *cache],
        "not fetched": ["run", str(place.recipe), *broken, *cache],
        "not fetched, shown": ["--traceback", "run", str(place.recipe), *broken, *cache],
    }
    printed = {name: finetune_process(*words, environment=environment) for name, words in asked.items()}
    return Sinks(place, printed, commands)


@pytest.mark.slow
def test_the_commands_did_what_they_were_asked(sinks: Sinks) -> None:
    status = {name: outcome.status for name, outcome in sinks.printed.items()}
    assert status["run"] == 0, sinks.printed["run"].stderr
    assert {name for name in status if status[name] == 0} >= {"run", "check", "show", "preview", "export", "publish"}, [
        sinks.printed[name].stderr for name in status if status[name]
    ]
    assert status["refused"] == 1
    assert "Traceback" in sinks.printed["refused"].stderr
    assert status["not fetched"] == 6
    assert "training_launcher" in sinks.commands.read_text(encoding="utf-8")


@pytest.mark.slow
def test_no_token_is_anywhere(sinks: Sinks, figures: Figures) -> None:
    found = []
    count = size = 0
    for name, data in sinks.texts():
        count, size = count + 1, size + len(data)
        for variable, value in SECRETS.items():
            forms = (value.encode(), base64.b64encode(value.encode())[:-4], value.encode("utf-16-le"))
            found += [f"{variable} in {name}" for form in forms if form in data]
    note = (
        f"{len(SECRETS)} tokens as text, base 64 and UTF-16; {size / 2**20:.0f} MiB; run, export, publish, tracebacks"
    )
    figures.report(
        "Secrets",
        "a token of the environment is in no file, line or command",
        count,
        "files, streams and command lists",
        len(found),
        note,
    )
    assert count >= 12
    assert found == []


@pytest.mark.slow
def test_a_whole_run_asks_nobody(sinks: Sinks, figures: Figures) -> None:
    """Two training processes and the workers that prepare rows, all with the guard; an attempt would end it with 6."""
    asked = sinks.printed["run"].status != 0 or "asked for" in sinks.printed["run"].stderr
    figures.report(
        "Network",
        "a whole run with --offline asks nobody outside this machine",
        1,
        "run, two training processes",
        int(asked),
    )
    assert not asked


def test_the_tokens_would_be_told_from_other_values() -> None:
    """Every canary but the address is one that publishing would look for."""
    known = {name for name, _ in describe_private([], CANARIES).values}
    assert known >= set(CANARIES) - {"PIP_INDEX_URL"}
