from __future__ import annotations

from collections import Counter

import pytest

from finetune.languages import language_of, languages_of


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How long does it take until the new card arrives?", "en"),
        ("Is cystinosis inherited in a recessive pattern?", "en"),
        ("Acute salpingitis and oophoritis of the left side", "en"),
        ("Der Vertrag kann von beiden Seiten mit einer Frist gekündigt werden.", "de"),
        ("Le contrat peut être résilié à tout moment par écrit.", "fr"),
        ("El banco no acepta mi tarjeta de crédito desde ayer.", "es"),
        ("私は昨日、新しいカードを申し込みました。", "ja"),
        ("나는 새 카드를 기다리고 있습니다", "ko"),
        ("婚后父母出的首付，房贷是父母和夫妻双方共同还款", "zh"),
        ("被告人周某甲窃得钢琴一架、紫色床单二个、茶叶一套", "zh"),
        ("這份合約必須以書面方式終止", "zh"),
        ("أين بطاقتي الجديدة التي طلبتها؟", "ar"),
        ("Мне нужна новая банковская карта", "ru"),
        ("", "und"),
        ("ok", "und"),
        ("合同", "und"),
        ("1234 5678 9012 3456 7890 1234", "und"),
        ("asdf qwer zxcv uiop hjkl", "und"),
    ],
)
def test_the_language_is_guessed_or_left_open(text: str, language: str) -> None:
    assert language_of(text) == language


def test_texts_are_counted_by_language() -> None:
    texts = ["Where is my new card?", "Where is the next cash machine?", "我的新卡在哪里？谢谢", "?"]
    assert languages_of(texts) == Counter({"en": 2, "zh": 1, "und": 1})


def test_a_lone_half_of_a_surrogate_pair_does_no_harm() -> None:
    assert language_of("Where is my new card, please? \ud83d") == "en"
