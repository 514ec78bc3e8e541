"""The conversations that every door is tried with: nobody's data, drawn from a seed, in several languages."""

from __future__ import annotations

import random
from collections.abc import Iterator

from evaluation.conversation import Conversation, Message

ENGLISH = (
    "What does the notice period of a tenancy depend on?",
    "Summarize the discharge letter in two sentences, please.",
    "The patient takes 500 mg of paracetamol twice a day (since 2026-03-01).",
    "Is a contract valid if it was never signed?  Give a reason.",
    "List three side effects, one on each line:\n- ",
    "Thanks! And what if it's the tenant who can't pay?",
)
CHINESE = (
    "租赁期限届满后，承租人继续使用房屋，合同还有效吗？",
    "请用两句话总结这份出院记录。",
    "患者自周一起发热，体温３８.５℃，每日两次服用布洛芬。",
    "“不可抗力”是什么意思？请举例说明。",
    "谢谢，那么押金什么时候退还？",
)
CODE = (
    "def total(prices: list[float]) -> float:\n    return sum(p for p in prices if p > 0)\n",
    "Why does `SELECT * FROM cases WHERE id = '1' OR 1=1;` return every row?",
    '{"icd": "E11.9", "title": "Type 2 diabetes", "codes": [1, 2.5e-3, null]}',
    "for (int i = 0; i < n; ++i) {\n\ta[i] <<= 2;  // times four\n}",
    '<p class="lead">It\'s 5 &lt; 7 &amp;&amp; true</p>',
)
EMOJI = (
    "🙂 ok, and then? 👍🏽",
    "👩🏽‍⚕️ sagt: 3× täglich 💊, nicht 4×!",
    "👨‍👩‍👧‍👦 4 Personen, 2 Zimmer 🇨🇭🇩🇪",
    "🎉🎉🎉",
)
OTHERS = (
    "Wie lange ist die Kündigungsfrist für Mieter? Drei Monate, § 573c BGB.",
    "¿Cuál es la dosis máxima? — Señora Núñez, 62 años",
    "مرحبا، كيف يمكنني تجديد الوصفة الطبية؟",
    "契約書の第3条を説明してください。",
    "Ångström, naïve, coöperate, ﬁne; ½ + ¼ = ¾",
    "1234567890 3.14159e-10 1,000,000 00:00",
)
KINDS = (ENGLISH, CHINESE, CODE, EMOJI, OTHERS)
SYSTEMS = ("You are a careful assistant.", "Answer in one sentence. 请用中文回答。", "Reply with a code only.")
JOINTS = ("", " ", "\n", "\n\n", "\t")


def door_conversations(count: int, seed: int = 0) -> Iterator[Conversation]:
    """Yield conversations that end with a user's turn: one to four questions, one in three with a system turn."""
    draw = random.Random(seed)
    for number in range(count):
        messages = [Message(role="system", content=draw.choice(SYSTEMS))] if draw.random() < 1 / 3 else []
        kind = KINDS[number % len(KINDS)]
        for _ in range(draw.choice((0, 0, 1, 2, 3))):
            messages += [
                Message(role="user", content=_text(draw, kind)),
                Message(role="assistant", content=_text(draw, kind)),
            ]
        yield Conversation(messages=(*messages, Message(role="user", content=_text(draw, kind))))


def _text(draw: random.Random, kind: tuple[str, ...]) -> str:
    """Draw one to three pieces, mostly of one kind; what they are joined with is what tokenizers cut at."""
    pieces = [draw.choice(kind)]
    for _ in range(draw.choice((0, 0, 0, 1, 2))):
        pieces += [draw.choice(JOINTS), draw.choice(draw.choice(KINDS))]
    return "".join(pieces)
