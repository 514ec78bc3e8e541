"""Renders a base's chat template as transformers does, within limits: a template comes with a model from anywhere.

What a template can say, and what it is given, is that of `apply_chat_template`
(https://huggingface.co/docs/transformers/en/chat_templating_writing). It is refused where it takes too long, makes too
much, or reaches outside; `{% generation %}` is read and changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from pydantic import JsonValue

from evaluation.errors import DataError, UserError
from evaluation.template_environment import DAY, SHOWN_CHARACTERS, TEMPLATE_DATE, ChatEnvironment, Refusal
from evaluation.template_meter import LONGEST_TEXT, TemplateExceedsError
from evaluation.template_patterns import Patterns

__all__ = ["TEMPLATE_DATE", "ChatTemplate", "Unrenderable", "with_fixed_date"]

_ASKS_FOR_THE_DAY = re.compile(r"""\bstrftime_now\(\s*(?:"([^"{}\\]*)"|'([^'{}\\]*)')\s*\)""")
_HINT = "name another one in `base.chat_template`"


def with_fixed_date(template: str) -> str:
    """Return a template that writes TEMPLATE_DATE where it would write the date of the day, whoever renders it."""
    fixed = _ASKS_FOR_THE_DAY.sub(lambda found: json.dumps(DAY.strftime(found[1] or found[2] or "")), template)
    if "date_string" not in template:
        return fixed
    return f'{{%- if date_string is not defined %}}{{%- set date_string = "{TEMPLATE_DATE}" %}}{{%- endif %}}\n{fixed}'


class Unrenderable(UserError):
    """One conversation cannot be rendered with a certain mask; `reason` is a short code for the account."""

    def __init__(self, reason: str, detail: str) -> None:
        """Take the code and what exactly, without the conversation's text."""
        super().__init__(detail)
        self.reason = reason


class ChatTemplate:
    """A compiled template with the special tokens it is given by name; not for several threads at once."""

    def __init__(self, text: str, special_tokens: Mapping[str, str]) -> None:
        """Compile a template.

        Raises:
            DataError: it is not Jinja, too long, or uses what chat templates may not.
        """
        self._environment = ChatEnvironment()
        self._special_tokens = dict(special_tokens)
        self._patterns = Patterns(text, lambda messages, ask: self._variables(messages, (), ask))
        try:
            self._template = self._environment.compiled(text)
        except TemplateExceedsError as error:
            raise _refused(str(error)) from error
        except (TemplateError, RecursionError, SyntaxError, MemoryError, ValueError, OverflowError) as error:
            raise _refused(f"it cannot be read: {error}") from error

    def render(
        self, messages: Sequence[dict[str, JsonValue]], tools: Sequence[dict[str, JsonValue]] = (), *, ask: bool
    ) -> str:
        """Render messages (role, content, tool_calls), with what asks for an answer behind them where `ask` says so.

        Raises:
            Unrenderable: `template_refuses`: the template says that it cannot; `template_fails`: it breaks.
            DataError: it takes more than a second, makes more than 10**7 characters, or reaches outside.
        """
        if tools:
            return self._rendered(messages, tools, ask)
        return self._patterns.text_or_learn(messages, ask, lambda: self._rendered(messages, (), ask))

    def _rendered(
        self, messages: Sequence[dict[str, JsonValue]], tools: Sequence[dict[str, JsonValue]], ask: bool
    ) -> str:
        try:
            return self._joined(self._variables(messages, tools, ask))
        except Refusal as error:
            raise Unrenderable(
                "template_refuses", f"the chat template says: {str(error)[:SHOWN_CHARACTERS]}"
            ) from error
        except (TemplateExceedsError, SecurityError) as error:
            raise _refused(str(error)) from error
        except (RecursionError, MemoryError) as error:
            raise _refused("it calls itself without end") from error
        except OverflowError as error:
            raise _refused("it makes a number or a range that is too large") from error
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            detail = f"the chat template fails with {type(error).__name__}"
            raise Unrenderable("template_fails", detail) from error

    def _variables(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, JsonValue]], ask: bool
    ) -> dict[str, Any]:
        return {
            **self._special_tokens,
            "messages": list(messages),
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": ask,
            "date_string": TEMPLATE_DATE,
        }

    def _joined(self, variables: dict[str, Any]) -> str:
        meter = self._environment.meter
        meter.start()
        parts: list[str] = []
        size = 0
        context = self._template.new_context(variables)
        for part in self._template.root_render_func(context):
            parts.append(part)
            size += len(part)
            if size > LONGEST_TEXT:
                raise TemplateExceedsError(f"it makes a text of more than {LONGEST_TEXT} characters")
        return "".join(parts)


def _refused(why: str) -> DataError:
    return DataError(f"the chat template is refused: {why}", where="base", hint=_HINT)
