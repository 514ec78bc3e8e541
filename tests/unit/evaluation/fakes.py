"""A model that answers from a dictionary, and short ways to build tasks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.answers import AnswerLoss, Choice, Generated
from evaluation.conversation import Conversation, Message
from evaluation.results import Identity
from evaluation.runner import Advance
from evaluation.task import LoadedTask, Sample, Task, TaskKind


@dataclass
class FakeModel:
    """Says what it is told to say; each letter is a token of `nats_per_token`."""

    answers: dict[str, str]
    stops: bool = True
    nats_per_token: float = 1.0
    option_scores: dict[str, list[float]] = field(default_factory=dict)
    passes: list[str] = field(default_factory=list)

    def generate(self, prompts: Sequence[Conversation], max_new_tokens: int, advance: Advance) -> list[Generated]:
        self.passes.append("generate")
        advance(len(prompts))
        texts = [self.answers[question(prompt)][:max_new_tokens] for prompt in prompts]
        return [Generated(text=text, tokens=len(text), stopped=self.stops) for text in texts]

    def choose(
        self,
        prompts: Sequence[Conversation],
        options: Sequence[str],
        references: Sequence[str],
        written: Sequence[str],
        advance: Advance,
    ) -> list[Choice]:
        self.passes.append("choose")
        advance(2 * len(prompts))
        likes = [[-1.0 if one == self.answers[question(p)] else -9.0 for one in options] for p in prompts]
        rows = [self.option_scores.get(question(prompt), row) for prompt, row in zip(prompts, likes, strict=True)]
        losses = [AnswerLoss(nll=self.nats_per_token * len(text), tokens=len(text)) for text in references]
        return [Choice(dict(enumerate(row)), loss) for row, loss in zip(rows, losses, strict=True)]

    def answer_losses(
        self, prompts: Sequence[Conversation], answers: Sequence[str], advance: Advance
    ) -> list[AnswerLoss]:
        self.passes.append("answer_losses")
        advance(len(prompts))
        return [AnswerLoss(nll=self.nats_per_token * len(text), tokens=len(text)) for text in answers]


def question(prompt: Conversation) -> str:
    return prompt.messages[-1].content


def sample(number: int, asked: str, reference: str) -> Sample:
    prompt = Conversation(messages=(Message(role="user", content=asked),))
    return Sample(id=f"rows.jsonl:{number}", prompt=prompt, reference=reference)


def loaded_task(
    kind: TaskKind, pairs: Sequence[tuple[str, str]], options: tuple[str, ...] = (), name: str = "quiz"
) -> LoadedTask:
    task = Task(version=1, name=name, kind=kind, samples="quiz.jsonl", options=options)
    samples = tuple(sample(number, asked, right) for number, (asked, right) in enumerate(pairs, start=1))
    return LoadedTask(task=task, file=Path("quiz.yaml"), samples=samples, sha256="5" * 64)


def identity(contender: str, task_sha256: str = "5" * 64) -> Identity:
    return Identity(
        contender=contender, model_sha256="a" * 64, task_sha256=task_sha256, seed=0, versions={"numpy": "2"}
    )


def ignore_progress(done: int) -> None:
    """Show nothing."""
