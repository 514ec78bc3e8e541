"""Proof that a running server is a door like the others: it cuts conversations as scoring does, and answers alike.

A server shows how many tokens it made of a prompt, and not which; its answers tell the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from evaluation.answers import Generated
from evaluation.conversation import Conversation
from evaluation.files import sha256_of_folder, write_model
from evaluation.inference import LanguageModel, load_language_model
from evaluation.model import ModelSpec, stored_dtype
from finetune.console import Reporter
from finetune.door_conversations import door_conversations
from finetune.doors import prompts_of
from finetune.errors import DataError, ProofFailed
from finetune.partings import LARGEST_GAP, first_parting
from finetune.server_door import SERVER_PROOF_FILE, ServerAnswer, ServerProof, ask_server, describe_server_proof
from finetune.server_process import Ended, free_port
from finetune.serving import Place, facts_of, started
from finetune.serving_choice import Server, choose_server
from finetune.serving_model import Asked, ServedModel, find_served
from finetune.signals import NOTHING_BY_HALVES, Interrupted

CONVERSATIONS, ANSWERED = 64, 8
"""Conversations whose tokens are counted; how many of them are answered in full."""
ANSWER_TOKENS = 32
PACKAGES: dict[Server, str] = {"vllm": "vllm", "transformers": "transformers", "llama.cpp": "llama-cpp-python"}


def prove_server(model: ServedModel, forced: Server | None, cache: Path, reporter: Reporter) -> ServerProof:
    """Start the server that `finetune serve` would start, set conversations through it, and end it.

    Raises:
        MachineError: no server can be started here, or it failed.
        ProofFailed: as for `compare_answers`.
        Interrupted: this process was asked to end while the server ran.
    """
    server = choose_server(facts_of(model), forced).server
    place = Place("127.0.0.1", free_port())
    own = load_language_model(ModelSpec(model.folder, dtype=stored_dtype(model.folder)))
    asked = server_conversations(own)
    try:
        with (
            started(model, server, place, cache, reporter),
            reporter.bar(f"ask {server}", CONVERSATIONS) as advance,
        ):
            answers = ask_server(place.address, model.name, asked[:ANSWERED], ANSWER_TOKENS, advance)
            answers += ask_server(place.address, model.name, asked[ANSWERED:], 1, advance)
    except Ended as ended:
        raise Interrupted(ended.number, NOTHING_BY_HALVES) from ended
    tokens, gaps = compare_answers(own, server, asked, answers)
    return ServerProof(
        server=server,
        version=version(PACKAGES[server]),
        model_sha256=sha256_of_folder(model.folder),
        conversations=len(asked),
        prompt_tokens=tokens,
        answers=ANSWERED,
        answer_tokens=ANSWER_TOKENS,
        equal=ANSWERED - len(gaps),
        stopped=sum(answer.finish_reason == "stop" for answer in answers[:ANSWERED]),
        largest_gap=max(gaps, default=None),
    )


def compare_answers(
    own: LanguageModel, server: str, asked: Sequence[Conversation], answers: Sequence[ServerAnswer]
) -> tuple[int, list[float]]:
    """Return the tokens of all prompts, and the gaps in logits where one of the first answers is not the model's own.

    Raises:
        ProofFailed: the server makes other tokens of a conversation, or answers otherwise where no tie explains it.
    """
    return _compare_tokens(own, server, asked, answers), _gaps(own, server, asked[:ANSWERED], answers[:ANSWERED])


def prove_served(asked: Asked, forced: Server | None, cache: Path) -> ServerProof:
    """Prove a server with the model of a run or a model's folder, and write serving.json into that folder.

    Raises:
        DataError: there is no such model.
        MachineError: no server can be started here, or it failed.
        ProofFailed: as for `prove_server`; nothing is written.
    """
    reporter, folder = Reporter(), Path(asked.named)
    if asked.adapters or not folder.is_dir():
        hint = "name a run or a model's folder, without --adapter"
        raise DataError("one model is proven, in whose folder the proof is written", where=asked.named, hint=hint)
    proof = prove_server(find_served(asked, cache, reporter), forced, cache, reporter)
    write_model(folder / SERVER_PROOF_FILE, proof)
    reporter.say(f"{folder / SERVER_PROOF_FILE}: {describe_server_proof(proof)}")
    return proof


def load_server_proof(folder: Path, model_sha256: str) -> ServerProof | None:
    """Read serving.json; none where there is none, it is damaged, or it is about another model."""
    try:
        proof = ServerProof.model_validate_json((folder / SERVER_PROOF_FILE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return proof if proof.model_sha256 == model_sha256 else None


def server_conversations(own: LanguageModel) -> list[Conversation]:
    """Conversations that the base's template takes."""
    found = [one for one, _ in prompts_of(own.renderer, door_conversations(4 * CONVERSATIONS))]
    if len(found) < CONVERSATIONS:
        raise ProofFailed("the chat template refuses the conversations that a server is tried with", where="doors")
    return found[:CONVERSATIONS]


def _compare_tokens(
    own: LanguageModel, server: str, asked: Sequence[Conversation], answers: Sequence[ServerAnswer]
) -> int:
    """Return the tokens of all prompts, where the server has as many of each."""
    total = 0
    for conversation, answer in zip(asked, answers, strict=True):
        expected = len(own.renderer.prompt(conversation))
        if answer.prompt_tokens != expected:
            raise ProofFailed(
                f"{server} makes {answer.prompt_tokens} tokens of a conversation, and scoring {expected}",
                where=f"its last turn is {conversation.messages[-1].content[:40]!r}",
                hint="the server has another chat template or tokenizer than the model was trained with",
            )
        total += expected
    return total


def _gaps(
    own: LanguageModel, server: str, asked: Sequence[Conversation], answers: Sequence[ServerAnswer]
) -> list[float]:
    """Return the gaps of the answers that are not the model's own, each at most what rounding explains."""
    gaps = []
    expected = own.generate(asked, ANSWER_TOKENS)
    for conversation, mine, theirs in zip(asked, expected, answers, strict=True):
        if mine.text == theirs.text.strip() and theirs.finish_reason in _ends(mine):
            continue
        gap = _gap(own, conversation, theirs)
        if not gap <= LARGEST_GAP:
            raise ProofFailed(
                f"{server} answers otherwise than the model, by a token that the model finds less probable by "
                f"{gap:.2f} logits; rounding explains {LARGEST_GAP}",
                where=f"asked {conversation.messages[-1].content[:40]!r}: {theirs.text[:60]!r} for {mine.text[:60]!r}",
            )
        gaps.append(gap)
    return gaps


def _ends(mine: Generated) -> tuple[str, ...]:
    """How a server may report the end; transformers serve 5.23 says `length` of a stop at the very last token."""
    if not mine.stopped:
        return ("length",)
    return ("stop", "length") if mine.tokens == ANSWER_TOKENS else ("stop",)


def _gap(own: LanguageModel, conversation: Conversation, theirs: ServerAnswer) -> float:
    """Logit of the model's token above that of the server's where they part; infinite where the tokens do not part."""
    end = own.renderer.stop_ids()[:1] if theirs.finish_reason == "stop" else ()
    answer = (*own.renderer.encode(theirs.text), *end)
    parting = first_parting(own.causal_lm, own.renderer.prompt(conversation), answer)
    return parting.gap if parting else float("inf")
