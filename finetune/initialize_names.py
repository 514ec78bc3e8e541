"""What people call their columns: words of five languages for what the bundled row templates ask for."""

from __future__ import annotations

import functools
import re
import unicodedata

OWN = 4.0
"""The column has the very name that the template uses."""
SYNONYM = 3.0
RELATED = 2.0
"""A word for something that can take this place, such as a question for an instruction."""
PART = 1.0
"""One word of the name is a synonym: `ticket_text`."""


def words_in(text: str) -> frozenset[str]:
    """Return the words of a list that is written as text."""
    return frozenset(text.split())


# English, German, French, Spanish and Chinese; several words are written together.
SYNONYMS = {
    "instruction": "instruction instructions task aufgabe anweisung auftrag tâche consigne instrucción tarea 指令 任务",
    "input": "input inputs eingabe entrée entrada 输入 输入内容",
    "output": "output outputs response responses reply target ausgabe erwiderung réplique sortie salida respuesta"
    " chosen 输出 回复 回应",
    "prompt": "prompt prompts eingabeaufforderung invite indicación 提示 提示词",
    "completion": "completion completions continuation fortsetzung vervollständigung complétion suite continuación"
    " 补全 续写",
    "system": "system systemprompt systemmessage systemanweisung 系统 系统提示",
    "question": "question questions query frage fragen fragestellung pregunta consulta 问题 提问 问句 问",
    "answer": "answer answers antwort antworten réponse réponses respuesta contestación 答案 回答 解答 答复 答",
    "context": "context passage paragraph background kontext absatz hintergrund contexte passage contexto pasaje"
    " 上下文 背景 段落 材料",
    "text": "text texts content body sentence message comment review utterance document article post tweet satz"
    " nachricht kommentar bewertung inhalt dokument artikel beitrag texte contenu phrase commentaire avis message"
    " texto contenido frase comentario reseña mensaje documento 文本 内容 正文 句子 评论 文章 文档 全文",
    "label": "label labels class category categories intent department team queue topic target tag klasse"
    " kategorie thema etikett absicht abteilung"
    " classe catégorie étiquette sujet clase categoría etiqueta tema intención 标签 类别 分类 类型 意图 主题",
    "sentiment": "sentiment polarity emotion feeling stars rating score sterne stimmung gefühl tonalität"
    " polarität émotion polarité sentimiento"
    " polaridad emoción estrellas 评分 星级 情感 情绪 情感倾向 极性",
    "entities": "entities entity ner annotations spans entitäten entität eigennamen annotationen entités entité"
    " entidades entidad anotaciones 实体 命名实体 实体列表",
    "source": "source src sourcetext original quelle quelltext ausgangstext original origine textesource fuente origen"
    " textoorigen 原文 源文",
    "target": "target tgt targettext translation translated übersetzung zieltext traduction cible traducción destino"
    " 译文 翻译 目标",
    "document": "document article text content body report passage dokument artikel text bericht inhalt texte rapport"
    " contenu documento artículo texto informe contenido 文档 文章 正文 原文 全文 内容",
    "summary": "summary abstract highlights tldr headline zusammenfassung kurzfassung überschrift résumé"
    " sommaire resumen"
    " 摘要 总结 概要 概述",
    "task": "task problem instruction description docstring prompt aufgabe problem tâche problème tarea"
    " problema 任务 题目"
    " 需求",
    "program": "program code solution function snippet canonicalsolution quellcode programm lösung code programme"
    " solución código programa 代码 程序 源代码",
    "language": "language lang programminglanguage programmiersprache langage lenguaje 编程语言",
    "source_language": "sourcelanguage sourcelang srclang quellsprache 源语言",
    "target_language": "targetlanguage targetlang tgtlang zielsprache 目标语言",
    "persona": "persona personas profile character role persönlichkeit rolle figur personnage rôle personaje papel"
    " 人设 角色 人物",
    "messages": "messages chat dialogue dialog turns history nachrichten gespräch verlauf mensajes diálogo 消息 对话",
    "conversations": "conversations conversation dialogue dialog chat turns unterhaltung gespräch conversación"
    " 对话 会话",
    "dialogue": "dialogue dialog utterances turns messages conversation conversations chat history dialog gespräch"
    " conversación diálogo 对话",
}

# What may stand for what where nothing better fits.
_RELATED = {
    "instruction": ("question", "prompt"),
    "output": ("answer", "completion", "program"),
    "answer": ("output",),
    "document": ("source", "input"),
    "text": ("input", "question"),
    "label": ("sentiment",),
    "sentiment": ("label",),
}

LANGUAGES = words_in(
    "en de fr es zh it pt nl pl ru ja ko ar tr sv da no fi cs el he hi uk ro hu vi th id"
    " eng deu ger fra fre spa zho chi ita por nld pol rus jpn kor"
    " english german french spanish chinese italian portuguese dutch russian japanese korean"
    " englisch deutsch französisch spanisch chinesisch italienisch anglais allemand français espagnol chinois"
    " inglés alemán francés español chino 英文 中文 德文 法文 英语 汉语 德语 法语 日语 日文"
)
"""Columns with such names hold the same text in several languages."""

GROUPS = words_in(
    "group groupid gruppe groupe grupo 组 分组 patient patientid patientin case caseid fall fallnummer fallid akte"
    " aktenzeichen dossier caso 案件 案号 患者 病人 document documentid doc docid dokument dokumentid documento 文档"
    " contract contractid vertrag contrat contrato 合同 customer customerid kunde kundennummer client clientid cliente"
    " 客户 user userid author authorid nutzer autor utilisateur usuario 用户 作者 session sessionid conversationid"
    " thread threadid ticket ticketid url link file filename datei fichier archivo 文件 topic topicid thema book bookid"
    " buch titel title id key qid pairid"
)
"""What rows belong together by; a name alone decides nothing unless its values repeat."""

METADATA = words_in(
    "id idx index key uuid number nr nummer numéro número date datum fecha time year jahr année año url link source"
    " quelle file filename datei lang language sprache langue idioma author autor split meta metadata version license"
    " licence page seite timestamp created updated score rating length tokens 编号 序号 日期 来源 语言 作者"
)
"""What is about a row rather than in it."""


def plain_name(name: str) -> str:
    """Spell a name without case, spaces and signs, so that `User Question` is `userquestion`."""
    return "".join(char for char in unicodedata.normalize("NFKC", name).casefold() if char.isalnum())


def words_of(name: str) -> list[str]:
    """Split a name at its signs and capitals: `text_de` and `textDe` are text and de."""
    spaced = re.sub(r"(?<=[a-zß-ÿ0-9])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    return [word.casefold() for word in re.split(r"[\W_]+", spaced) if word]


def name_score(wanted: str, name: str) -> float:
    """Say how well a column's name answers to a template's column: OWN, SYNONYM, RELATED, PART or 0."""
    plain = plain_name(name)
    if plain == plain_name(wanted):
        return OWN
    if plain in _synonyms(wanted):
        return SYNONYM
    if any(plain in _synonyms(other) for other in _RELATED.get(wanted, ())):
        return RELATED
    in_words = any(word in _synonyms(wanted) for word in words_of(name))
    # Chinese has no spaces: 问题描述 holds 问题.
    in_chinese = any(len(word) > 1 and word in plain for word in _synonyms(wanted) if word[0] >= "\u3400")
    return PART if in_words or in_chinese else 0.0


def language_of(name: str) -> str:
    """Return the language that a column's name says its text is in, and "" where it says none."""
    plain = plain_name(name)
    last = words_of(name)[-1:]
    return plain if plain in LANGUAGES else next((word for word in last if word in LANGUAGES), "")


def is_metadata(name: str) -> bool:
    """Say whether a name is one of those for numbers, dates and origins of rows."""
    return plain_name(name) in METADATA or words_of(name)[-1:] == ["id"]


def is_group(name: str) -> bool:
    """Say whether a name is one of those that rows belong together by."""
    return plain_name(name) in GROUPS


@functools.cache
def _synonyms(wanted: str) -> frozenset[str]:
    return frozenset({plain_name(wanted), *map(plain_name, words_in(SYNONYMS.get(wanted, "")))})
