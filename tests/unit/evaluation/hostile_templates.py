"""Chat templates that take too long, make too much, or reach outside; each is refused for every conversation."""

from __future__ import annotations

_BIG = "{% set big = 'ab' * 4999999 %}"
_ROUNDS = "{% for a in range(99999) %}{% for b in range(99999) %}"
_END = "{% endfor %}{% endfor %}"


def _doubled(statement: str, times: int = 40) -> str:
    """Repeat a statement that makes something twice as large."""
    return statement * times


HOSTILE = {
    "loops in loops": f"{_ROUNDS}{_END}",
    "loops in loops that write": f"{_ROUNDS}xxxxxxxxxxxxxxxx{_END}",
    "loops whose filter rejects everything": "{% for a in range(99999) %}{% for b in range(99999) if false %}"
    "{% endfor %}{% endfor %}",
    "huge range": "{% for a in range(10**9) %}{% endfor %}",
    "text times a number": "{{ 'a' * 10**9 }}",
    "text times a number, set aside": "{% set a = 'a' * 10**9 %}",
    "list times a number": "{% set a = [0] * 10**9 %}",
    "number times a text": "{{ 10**9 * 'a' }}",
    "huge power": "{{ 10**(10**10) }}",
    "power by power": _doubled("{% set n = (n or 9) * (n or 9) %}"),
    "%d with a width": "{{ '%9999999999d' % 1 }}",
    "%d with a width from outside": "{{ '%*d' % (10**9, 1) }}",
    "%f with a precision": "{{ '%.999999999f' % 1 }}",
    "format filter": "{{ '%999999999s' | format(1) }}",
    "format with a width": "{{ '{:>999999999}'.format(1) }}",
    "format with a nested width": "{{ '{:>{}}'.format(1, 10**9) }}",
    "center filter": "{{ 'a' | center(10**9) }}",
    "center": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\t'.expandtabs(10**9) }}",
    "indent filter": "{{ 'a\nb' | indent(10**9) }}",
    "tojson with an indent": "{{ [1] | tojson(indent=10**9) }}",
    "batch filter": "{{ [1] | batch(10**9, 0) | list }}",
    "slice filter": "{{ [1] | slice(10**9) | list }}",
    "round filter": "{{ 1.5 | round(10**9, 'floor') }}",
    "bytes of a number": "{{ (1).to_bytes(10**9, 'big') }}",
    "replace": f"{_BIG}{{{{ big.replace('a', big) }}}}",
    "replace filter": f"{_BIG}{{{{ big | replace('a', big) }}}}",
    "join": f"{_BIG}{{{{ big.join(big) }}}}",
    "join filter": f"{_BIG}{{{{ ([0] * 9999) | join(big) }}}}",
    "self-join with ~": "{% set a = 'a' %}" + _doubled("{% set a = a ~ a %}"),
    "self-join with +": "{% set a = 'a' %}" + _doubled("{% set a = a + a %}"),
    "self-join in a block": "{% set a = 'a' %}" + _doubled("{% set a %}{{ a }}{{ a }}{% endset %}"),
    "many large texts": f"{_BIG}" + "".join(f"{{% set a{i} = big[1:] %}}" for i in range(200)),
    "a list of itself twice": "{% set a = [0] %}" + _doubled("{% set a = [a, a] %}") + "{{ a }}",
    "a mapping of itself twice": "{% set a = {} %}" + _doubled("{% set a = dict(x=a, y=a) %}") + "{{ a | tojson }}",
    "tuples a thousand deep": "{% set a = (0, 0) %}" + _doubled("{% set a = (a, 0) %}", 1000) + "{{ {a: 1} }}",
    "namespace of itself": "{% set n = namespace() %}{% set n.a = n %}{{ n }}",
    "searches from the right": f"{_BIG}{{{{ ('a' * 9999999).rfind('b' + 'a' * 999999) }}}}",
    "strips a large set": "{{ ('a' * 9999999).strip('b' * 999999 + 'a') }}",
    "large texts compared again and again": "{% set a = 'a' * 9999999 %}{% set b = 'a' * 9999999 %}"
    "{% for i in range(99999) %}{% set c = a == b %}{% endfor %}",
    "lazy filters": f"{_BIG}{{% for x in range(99999) | map('default', big, true) | map('upper') %}}"
    "{{ loop.length }}{% endfor %}",
    "select over a long text": "{% set a = 'a' * 9999999 %}{{ range(99999) | map('string') | select('in', a) | list }}",
    "macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macro that calls itself twice": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "class of a text": "{{ ''.__class__ }}",
    "classes from a text": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by subscript": "{{ ''['__class__'] }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "attribute through format": "{{ '{0.__class__}'.format('') }}",
    "attribute through map": "{{ [''] | map(attribute='__class__') | list }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "class of a namespace": "{{ namespace.__init__.__globals__ }}",
    "underscore in a namespace": "{{ namespace(__class__=1) }}",
    "messages emptied": "{{ messages.clear() }}",
    "message appended": "{{ messages.append(messages[0]) }}",
    "message changed": "{{ messages[0].update(role='x') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'base' %}",
    "block": "{% block a %}{% endblock %}",
    "autoescape": "{% autoescape true %}{{ '<' }}{% endautoescape %}",
    "wide date": "{{ strftime_now('%999999999d') }}",
    "does not end": "{% for m in messages %}",
    "parentheses": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "too long": "x" * 200_000,
}
