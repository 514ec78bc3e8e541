"""`finetune serve`: OpenAI's own client, a real server, and the answers that scoring has."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil
import pytest
from talkative import ANSWERS, TUNED, asked, talkative_run
from tiny_runs import finetune_command, process_command

from evaluation.conversation import Conversation, Message
from evaluation.inference import LanguageModel, load_language_model
from evaluation.model import ModelSpec
from finetune.server_door import ServerProof, ask_server
from finetune.server_process import free_port

pytestmark = pytest.mark.slow  # a whole run is made first

LIMIT = 40
CONVERSATIONS = [
    *(asked(question) for question in ANSWERS),
    asked("Which word is it?", "It is fever.", "And in Chinese?"),
    asked("发烧 🙂 é\n  two  spaces "),
    Conversation(messages=(Message(role="system", content="be kind"), Message(role="user", content="Count."))),
]


@dataclass
class Served:
    """A running `finetune serve` of a run's merged model."""

    process: subprocess.Popen[str]
    address: str
    model: LanguageModel

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="-", max_retries=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talkative_run(tmp_path_factory)


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    port = free_port()
    cache = tmp_path_factory.mktemp("cache")
    command = process_command("serve", str(run), "--port", str(port), "--cache", str(cache))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    while "until Ctrl-C" not in (line := process.stderr.readline()):
        lines.append(line)
        assert line, "".join(lines)
    model = load_language_model(ModelSpec(run / "merged", dtype="float32"))
    yield Served(process, f"http://127.0.0.1:{port}", model)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_the_servers_answers_are_those_of_scoring(served: Served) -> None:
    expected = served.model.generate(CONVERSATIONS, LIMIT)
    found = ask_server(served.address, "tiny", CONVERSATIONS, LIMIT)
    assert [one.text.strip() for one in found] == [one.text for one in expected]
    assert [one.prompt_tokens for one in found] == [len(served.model.renderer.prompt(one)) for one in CONVERSATIONS]
    assert [one.finish_reason for one in found] == ["stop" if one.stopped else "length" for one in expected]
    assert found[0].text == TUNED
    assert found[0].finish_reason == "stop"


@pytest.mark.slow
def test_a_server_is_proven_by_one_command(run: Path, tmp_path: Path) -> None:
    proven = finetune_command("serve", str(run), "--prove", "--cache", str(tmp_path))
    assert proven.status == 0, proven.stderr
    proof = ServerProof.model_validate_json((run / "serving.json").read_bytes())
    assert (proof.server, proof.conversations, proof.equal) == ("transformers", 64, 8)
    assert "8/8 answers equal" in proven.stderr


@pytest.mark.slow
def test_openais_client_streams_lists_and_counts(served: Served) -> None:
    assert [model.id for model in served.client.models.list()] == ["tiny"]
    messages = [{"role": "user", "content": "Count."}]
    whole = served.client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=LIMIT)
    assert whole.choices[0].message.content == TUNED
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(served.model.renderer.prompt(asked("Count.")))
    stream = served.client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, max_tokens=LIMIT, stream=True
    )
    chunks = [chunk.choices[0] for chunk in stream]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == TUNED
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.slow
def test_a_temperature_that_is_asked_for_acts(served: Served) -> None:
    def texts(temperature: float) -> set[str | None]:
        return {
            served.client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "Count."}],
                temperature=temperature,
                max_tokens=8,
                seed=seed,
            )
            .choices[0]
            .message.content
            for seed in range(5)
        }

    assert len(texts(5.0)) > len(texts(0.0)) == 1


@pytest.mark.slow
def test_another_model_is_refused(served: Served) -> None:
    with pytest.raises(openai.BadRequestError):
        served.client.chat.completions.create(model="other", messages=[{"role": "user", "content": "a"}])


@pytest.mark.slow
def test_sigterm_ends_it_with_its_server(served: Served) -> None:
    below = psutil.Process(served.process.pid).children(recursive=True)
    assert below
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 0
    gone, left = psutil.wait_procs(below, timeout=20)
    assert (len(gone), left) == (len(below), [])


def test_dry_run_prints_a_command_line_and_starts_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = finetune_command("serve", str(run), "--dry-run", "--port", "8123", "--cache", str(tmp_path))
    assert shown.status == 0
    assert "transformers serve tiny --host 127.0.0.1 --port 8123" in shown.stdout.replace(".cli.transformers", "")
    assert "HF_HUB_OFFLINE=1" in shown.stdout
    monkeypatch.chdir(tmp_path)
    relative = finetune_command("serve", str(run), "--dry-run", "--cache", "near")
    assert relative.stdout.startswith(f"cd {tmp_path / 'near'}"), relative.stderr


def test_what_cannot_be_served_is_refused(run: Path, tmp_path: Path) -> None:
    cache = ("--cache", str(tmp_path))
    adapters = finetune_command("serve", str(run), "--adapter", f"other={run / 'adapter'}", "--dry-run", *cache)
    assert adapters.status == 6
    assert "merge the adapter" in adapters.stderr
    alone = finetune_command("serve", str(run / "adapter"), "--dry-run", *cache)
    assert alone.status == 3
    assert "this is an adapter" in alone.stderr
    nothing = finetune_command("serve", str(tmp_path / "nothing"), "--dry-run", *cache)
    assert nothing.status == 3
    (run / "merged").rename(run / "put-aside")
    try:
        unmerged = finetune_command("serve", str(run), "--dry-run", *cache)
    finally:
        (run / "put-aside").rename(run / "merged")
    assert unmerged.status == 3
    assert "not merged yet" in unmerged.stderr


def test_a_port_that_is_taken_is_said_before_anything_starts(run: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        told = finetune_command("serve", str(run), "--port", port, "--cache", str(tmp_path))
    assert told.status == 6
    assert "cannot be used" in told.stderr
