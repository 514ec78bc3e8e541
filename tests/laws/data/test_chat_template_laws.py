"""Laws of chat templates: ours and the families', over generated conversations; and templates made to do harm."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from figures import Figures
from transformers import PreTrainedTokenizerFast

UNIT = Path(__file__).parents[2] / "unit"
sys.path.append(str(UNIT / "evaluation"))

from chat_styles import STYLES, Style, style_tokenizer  # noqa: E402
from tiny_model import build_tokenizer  # noqa: E402

from evaluation.chat_text import as_json  # noqa: E402
from evaluation.conversation import Conversation, Message, ToolCall  # noqa: E402
from evaluation.rendering import IGNORE, TEMPLATE_DATE, Example, Renderer, Unrenderable  # noqa: E402
from evaluation.template_laws import check_template  # noqa: E402
from finetune.chat_templates import list_chat_templates, load_chat_template  # noqa: E402

GOLDEN = UNIT / "golden_chats"
TOKENS = ("<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<unk>")
FOREIGN = Style(
    "any", "", lambda _: [], bos="<s>", eos="</s>", end_of_turn="<|eot_id|>", others=TOKENS, splitting="llama3"
)
"""A tokenizer with every control token."""
PIECES = (
    "What is it?",
    "🙂👩‍⚕️",
    "مرحبا",
    "שלום",
    "北京",
    "a\n\nb",
    " ",
    "\t",
    "```x```",
    "{{ x }}",
    "1.",
    "<b>",
    "\n",
    "",
)


def renderers() -> dict[str, Renderer]:
    """Build a renderer for every template: those of the families, and ours."""
    found = {f"family {style.name}": Renderer(style_tokenizer(style)) for style in STYLES}
    found["family smollm2"] = Renderer(build_tokenizer())
    for name in list_chat_templates():
        shared = style_tokenizer(FOREIGN)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=shared.backend_tokenizer, bos_token=FOREIGN.bos, eos_token=FOREIGN.eos
        )
        tokenizer.chat_template = load_chat_template(name)
        found[name] = Renderer(tokenizer)
    return found


def conversation(seed: int) -> Conversation:
    """Make 1 to 8 exchanges, half of them with a system message."""
    draw = random.Random(seed)

    def text() -> str:
        return "".join(draw.choices(PIECES, k=draw.randint(0, 4)))

    messages = [Message(role="system", content=text())] if draw.random() < 0.5 else []
    for _ in range(draw.randint(1, 8)):
        messages += [Message(role="user", content=text()), Message(role="assistant", content=text())]
    return Conversation(messages=tuple(messages))


def spans(example: Example) -> list[tuple[int, ...]]:
    """Return the runs of trained tokens."""
    runs: list[list[int]] = [[]]
    for label in example.labels:
        if label == IGNORE:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tuple(run) for run in runs if run]


def begins_once(name: str, renderer: Renderer, example: Example) -> bool:
    bos, count = renderer.tokenizer.bos_token_id, example.input_ids.count(renderer.tokenizer.bos_token_id)
    if name in ("family chatml", "family smollm2"):  # whose beginning of sequence opens every turn
        return example.input_ids[0] == bos
    if name == "family zephyr":  # which has none in its template
        return count == 0
    exchanges = len(spans(example)) if "llama2" in name else 1
    return example.input_ids[0] == bos and count == exchanges


def test_every_template_keeps_the_laws(figures: Figures) -> None:
    laws = (
        "appending a message never changes earlier text",
        "the generation prompt is a prefix of the full rendering",
        "a text begins once",
        "the trained span is exactly the answer and its end of turn",
        "the bounded rendering is that of transformers",
        "tokens before an answer are those of the prompt alone",
    )
    broken = dict.fromkeys(laws, 0)
    cases = refused = 0
    each = figures.amount(25, 1000)
    for name, renderer in renderers().items():
        check_template(renderer)
        chats = [conversation(seed) for seed in range(each)]
        for chat, example in zip(chats, renderer.examples(chats), strict=True):
            cases += 1
            refused += isinstance(example, Unrenderable)
            messages, whole = chat.messages, renderer.chat_text(chat.messages, ask=False)
            upto = [renderer.chat_text(messages[: i + 1], ask=False) for i in range(len(messages))]
            turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
            asked = [renderer.chat_text(messages[:i], ask=True) for i in turns]
            broken[laws[0]] += not all(whole.startswith(text) for text in upto)
            broken[laws[1]] += not all(whole.startswith(text) for text in asked)
            theirs = renderer.tokenizer.apply_chat_template(
                [as_json(message) for message in messages], tokenize=False, date_string=TEMPLATE_DATE
            )
            broken[laws[4]] += whole != theirs
            if isinstance(example, Unrenderable):
                assert example.reason == "answer_merges_with_prompt"
                continue
            broken[laws[2]] += not begins_once(name, renderer, example)
            found = [renderer.text(span[:-1]).strip() for span in spans(example)]
            ends = all(span[-1] in renderer.special_ids for span in spans(example))
            broken[laws[3]] += found != [messages[i].content.strip() for i in turns] or not ends
            prompts = [tuple(renderer.encode(text)) for text in asked]
            broken[laws[5]] += not all(example.input_ids[: len(prompt)] == prompt for prompt in prompts)
    note = f"{len(renderers())} templates; {refused} conversations refused because an answer merges with its prompt"
    for law, failures in broken.items():
        figures.report("Chat templates", law, cases, "conversations", failures, note)
    assert sum(broken.values()) == 0
    assert refused < cases / 4


HOSTILE_RUN = """
import json, re, sys, time
from pathlib import Path
from evaluation import template_meter
from evaluation.chat_template import ChatTemplate
from evaluation.errors import DataError
from hostile_templates import HOSTILE
template_meter.SECONDS = float(sys.argv[1])
found = {}
for name, text in HOSTILE.items():
    began = time.thread_time()
    try:
        ChatTemplate(text, {}).render([{"role": "user", "content": "hi"}], ask=False)
        outcome = "rendered"
    except DataError:
        outcome = "refused"
    except Exception as error:
        outcome = repr(error)
    found[name] = [outcome, time.thread_time() - began]
# The peak of this process alone; that of getrusage begins with its parent's.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))
print(json.dumps([found, peak // 1024]))
"""


def test_every_hostile_template_is_refused(figures: Figures) -> None:
    seconds = 0.5 if figures.full else 0.1
    ran = subprocess.run(
        [sys.executable, "-c", HOSTILE_RUN, str(seconds)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{UNIT / 'evaluation'}:{UNIT.parents[1]}"},
    )
    found, megabytes = json.loads(ran.stdout)
    missed = {name: outcome for name, (outcome, _) in found.items() if outcome != "refused"}
    slowest = max(took for _, took in found.values())
    note = f"slowest after {slowest:.1f} s of processor time, {megabytes} MB with Python itself"
    figures.report("Chat templates", "a hostile template is refused", len(found), "templates", len(missed), note)
    assert (missed, len(found) >= 40, slowest < seconds + 1, megabytes < 300) == ({}, True, True, True)


def marked(renderer: Renderer, example: Example) -> str:
    """Write an example as text with what is trained on between ⟦ and ⟧."""
    text, ids = "", list(zip(example.input_ids, example.labels, strict=True))
    while ids:
        trained = ids[0][1] != IGNORE
        size = next((i for i, (_, label) in enumerate(ids) if (label != IGNORE) != trained), len(ids))
        part = renderer.text(tuple(token for token, _ in ids[:size]))
        text += f"⟦{part}⟧" if trained else part
        ids = ids[size:]
    return text


CHAT = Conversation(
    messages=(
        Message(role="system", content="Be brief."),
        Message(role="user", content="What is it?"),
        Message(role="assistant", content="A fever. 🙂"),
        Message(role="user", content=" Is it bad? "),
        Message(role="assistant", content="不是。"),
    )
)
WITH_TOOLS = Conversation(
    messages=(
        Message(role="user", content="Rain in Zürich?"),
        Message(
            role="assistant",
            content="",
            tool_calls=(ToolCall(name="weather", arguments={"city": "Zürich", "days": 1}),),
        ),
        Message(role="tool", content='{"rain": false}'),
        Message(role="assistant", content="No."),
    ),
    tools=({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}},),
)


@pytest.mark.parametrize("name", list_chat_templates())
def test_the_bundled_templates_read_as_they_did(name: str) -> None:
    renderer = renderers()[name]
    text = marked(renderer, renderer.example(CHAT)) + "\n"
    if name in ("chatml", "llama3"):
        text += "\n----- with tools\n\n" + marked(renderer, renderer.example(WITH_TOOLS)) + "\n"
    else:
        with pytest.raises(Unrenderable, match="no form for tools"):
            renderer.example(WITH_TOOLS)
    assert text == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list_chat_templates())
@pytest.mark.parametrize("roles", ["ua-uu-a", "a", "uaa", "us", "usa", "ut"])
def test_the_bundled_templates_refuse_speakers_out_of_turn(name: str, roles: str) -> None:
    speakers = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    rows = [{"role": speakers[one], "content": "x"} for one in roles.replace("-", "")]
    messages = tuple(Message.model_validate(row) for row in rows)
    with pytest.raises(Unrenderable) as refusal:
        renderers()[name].chat_text(messages, ask=False)
    assert refusal.value.reason == "template_refuses"
