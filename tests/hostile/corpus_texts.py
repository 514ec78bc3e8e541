"""Hostile recipes, row templates, chat templates and names."""

# ruff: noqa: E501  # templates and recipes in one line each, as they come

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from attacked import Attack

from evaluation.chat_template import ChatTemplate
from finetune.chat_templates import load_chat_template
from finetune.errors import DataError
from finetune.push_targets import is_safe_name, parse_source
from finetune.pypi import parse_pypi_reference
from finetune.recipe_file import load_recipe
from finetune.row_template_files import load_row_template
from finetune.row_templates import to_conversation

GOOD = """version: 1
name: a
base: {model: org/name}
adapter: {kind: lora}
data:
  train: [{source: rows.csv, rows: alpaca}]
  held_out: {fraction: 0.1}
"""
RUN = "__import__('pathlib').Path('executed').touch()"

YAML: dict[str, str | bytes] = {
    "ten levels of laughs": "a0: &a0 [x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)),
    "an alias to itself": "a: &a [*a]\n",
    "python apply": '!!python/object/apply:os.system ["touch executed"]\n',
    "python new": "a: !!python/object/new:os.system [touch executed]\n",
    "python name": "a: !!python/name:os.system\n",
    "python module": "a: !!python/module:os\n",
    "python in a key": "!!python/name:os.system : 1\n",
    "python behind a directive": "%TAG !p! tag:yaml.org,2002:python/\n---\na: !p!object/apply:os.system [touch executed]\n",
    "binary": "a: !!binary aGVsbG8=\n",
    "a set": "a: !!set {b, c}\n",
    "a timestamp": "name: 2001-01-01\nversion: !!timestamp 2001-01-01\n",
    "a merge key": "a: {<<: {b: 1}}\n",
    "an anchor": "a: &b 1\n",
    "ten thousand brackets": "[" * 10_000,
    "ten thousand braces": "{a: " * 10_000,
    "ten thousand dashes": "- " * 10_000 + "a",
    "a thousand indents": "".join(" " * i + f"a{i}:\n" for i in range(1_000)),
    "two megabytes": "# " + "x" * 2_000_000 + "\n" + GOOD,
    "a key of a megabyte": "x" * 900_000 + ": 1\n",
    "an open quote": 'a: "' + "x\n" * 100_000,
    "fifty thousand keys": "".join(f"k{i}: 1\n" for i in range(50_000)),
    "a key that is a map": "{a: 1}: 2\n",
    "a question mark": "? [a, b]\n: 1\n",
    "two documents": f"{GOOD}---\n{GOOD}",
    "NUL": GOOD.replace("org/name", "org\0name"),
    "an escape sequence": GOOD.replace("org/name", '"\\e]0;title\\a"'),
    "half a surrogate": GOOD.replace("org/name", '"\\ud800"'),
    "UTF-16": GOOD.encode("utf-16"),
    "bytes of Latin-1": b"a: \xe9\xff\n",
    "a number of 5,000 digits": f"version: {'9' * 5_000}\n",
    "infinity": "version: .inf\n",
    "1e999": "version: 1e999\n",
    "tabs": "a:\n\t\tb: 1\n",
    "nothing": "",
    "a token": GOOD + f"description: hf_{'aB3dE5gH7jK9' * 3}\n",
    "a token in a comment": GOOD + f"# sk-{'aB3dE5gH7jK9' * 3}\n",
    "a token in a name of a column": GOOD.replace(
        "rows: alpaca", f"rows: alpaca, columns: {{input: ghp_{'aB3dE5gH7jK9' * 3}}}"
    ),
    "remote code": GOOD.replace("model: org/name", "model: org/name, trust_remote_code: true"),
    "a name that leads out": GOOD.replace("name: a", "name: ../../tmp/a"),
    "a name with a slash": GOOD.replace("name: a", "name: a/b"),
    "a pickled source": GOOD.replace("rows.csv", "rows.pkl"),
    "a source by address": GOOD.replace("rows.csv", "http://192.0.2.1/rows.csv"),
    "a wheel's file that leads out": GOOD.replace(
        "source: rows.csv", f"source: 'pypi:a==1/../../x.csv', sha256: {'0' * 64}"
    ),
    "an option for pip": GOOD.replace("source: rows.csv", f"source: 'pypi:--index-url==1/x.csv', sha256: {'0' * 64}"),
    "Jinja in a value": GOOD.replace("name: a", 'name: "{{ cycler.__init__.__globals__ }}"'),
    "a shell's variable": GOOD.replace("name: a", "name: ${HOME}"),
}


def _recipe(text: str | bytes) -> Callable[[Path], object]:
    def attempt(place: Path) -> object:
        file = place / "r.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        return load_recipe(str(file))

    return attempt


def _row_template(text: str | bytes) -> Callable[[Path], object]:
    def attempt(place: Path) -> object:
        file = place / "t.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        template = load_row_template(str(file))
        row = {"a": "x" * 10_000, "b": ["y" * 1_000] * 1_000, "c": 10**30, "d": {"e": ["f"] * 100}}
        return to_conversation(template, row, {})

    return attempt


TURN = """kind: chat
description: hostile
columns:
  a: {{doc: a text}}
  b: {{doc: a list, required: false}}
turns:
  - {{role: user, content: {user}}}
  - {{role: assistant, content: "{{{{ a }}}}"}}
"""

JINJA = {
    "a class": "{{ a.__class__ }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os.system('touch executed') }}",
    "globals of lipsum": "{{ lipsum.__globals__['os'].popen('touch executed').read() }}",
    "globals of joiner": "{{ joiner.__init__.__globals__ }}",
    "self": "{{ self._TemplateReference__context }}",
    "attr": "{{ a|attr('__class__') }}",
    "attr in parts": "{{ a|attr('__cla' ~ 'ss__') }}",
    "map to attributes": "{{ [a]|map(attribute='__class__')|list }}",
    "format with a class": "{{ '{0.__class__}'.format(a) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': a}) }}",
    "a percent with a width": "{{ '%999999999d' % 1 }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.system('touch executed') }}",
    "extends": "{% extends 'x' %}",
    "a text a billion times": "{{ 'a' * 10**9 }}",
    "a list a billion times": "{{ ([0] * 10**9)|length }}",
    "a range": "{{ range(10**9)|list|length }}",
    "a power": "{{ 2 ** 10 ** 9 }}",
    "loops in loops": "{% for i in range(10000) %}{% for j in range(10000) %}{% for k in range(10000) %}{% endfor %}{% endfor %}{% endfor %}",
    "a loop that writes": "{% for i in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "doubling": "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "a macro in itself": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "a namespace in itself": "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
    "replace": "{{ ('a' * 3000)|replace('a', 'b' * 3000)|replace('b', 'c' * 3000) }}",
    "center": "{{ 'a'.center(10**9) }}",
    "indent": "{{ ('a\n' * 900)|indent(10**8) }}",
    "join of joins": "{{ (('x' * 9000)|list)|join('y' * 9000)|list|join('z' * 9000) }}",
    "xmlattr": "{{ {'a': 'b'}|xmlattr }}",
    "wordwrap": "{{ ('a ' * 9999)|wordwrap(1) }}",
    "five thousand brackets": "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
    "five thousand ifs": "{% if a %}" * 5_000 + "{% endif %}" * 5_000,
    "a long chain": "{{ a" + " ~ a" * 20_000 + " }}",
    "a number of 5,000 digits": "{{ " + "9" * 5_000 + " }}",
    "pprint": "{{ a|pprint }}",
    "a debug tag": "{% debug %}",
    "an expression statement": "{% do a.append(1) %}",
    "a call of a block": "{% call(x) a() %}{% endcall %}",
    "strftime without end": "{{ strftime_now('%' + '9' * 99 + 'Y') }}",
    "raise with an escape": "{{ raise_exception('\x1b]0;title\x07') }}",
    "sums of large numbers": "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "sort of a long list": "{% for i in range(9999) %}{{ (range(9999)|list|sort)[0] }}{% endfor %}",
    "find in a long text": "{% set t = 'a' * 900000 %}{{ t.rfind('a' * 400000 ~ 'b') }}",
    "an autoescape block": "{% autoescape true %}{{ a }}{% endautoescape %}",
    "a trans block": "{% trans %}a{% endtrans %}",
    "an open block": "{% if a %}",
}


def _chat_template(text: str) -> Callable[[Path], object]:
    def attempt(_: Path) -> object:
        template = ChatTemplate(text, {"bos_token": "<s>", "eos_token": "</s>"})
        messages = [{"role": "user", "content": "x" * 1_000}, {"role": "assistant", "content": "y"}]
        return template.render([dict(m, a="x") for m in messages], ask=True)  # type: ignore[arg-type]

    return attempt


PATHS = (
    "pypi:a==1/../x.csv",
    "pypi:a==1//etc/passwd",
    "pypi:a==1/a/./b.csv",
    "pypi:a==1/C:/x.csv",
    "pypi:a==1/..\\x.csv",
    "pypi:a==1/a\nb.csv",
    "pypi:a==1/a\0b.csv",
    "pypi:a==1/",
    "pypi:a/x.csv",
    "pypi:-r==1/x.csv",
    "pypi:a==1;os.system('x')/x.csv",
    "pypi:a @ file:///etc/passwd==1/x.csv",
    "pypi:a==1 --index-url=http://192.0.2.1/x.csv",
    "http://192.0.2.1/x.csv",
)
SENT = (
    "../x.json",
    "/etc/x.json",
    "a/../../x.json",
    "a\\..\\x.json",
    "x.py",
    "x.bin",
    "x.pt",
    "x.pkl",
    "x.so",
    "a//x.json",
    "./x.json",
    "x.json/",
    "x.sh",
    ".git/config",
    "x.json\0.py",
    "pytorch_model.bin",
)


def _put_what_is_no_file(place: Path) -> None:
    for end in ("yaml", "jinja"):
        (place / f"folder.{end}").mkdir()
        os.mkfifo(place / f"pipe.{end}")
        (place / f"loop.{end}").symlink_to(place / f"loop.{end}")
        (place / f"zero.{end}").symlink_to("/dev/zero")


def _safe_name(name: str) -> Callable[[Path], object]:
    def attempt(_: Path) -> object:
        if not is_safe_name(name):
            raise DataError("not fetched", where=repr(name))
        return name

    return attempt


def texts() -> Iterator[Attack]:
    """Yield every attack by a text or a name."""
    yield from (Attack(f"recipe: {name}", _recipe(text)) for name, text in YAML.items())
    harmless = {"a timestamp", "a shell's variable"}
    own = {name: text for name, text in YAML.items() if not (isinstance(text, str) and text.startswith("version"))}
    yield from (Attack(f"row template: {name}", _row_template(text), name in harmless) for name, text in own.items())
    for name, text in JINJA.items():
        if name not in ("an open block", "raise with an escape"):
            filled = TURN.format(user=_quoted(text))
            yield Attack(f"row template: {name}", _row_template(filled))
        yield Attack(f"chat template: {name}", _chat_template(text), name == "a power")
    yield from (Attack(f"wheel's path: {path!r}", lambda _, p=path: parse_pypi_reference(p)) for path in PATHS)
    yield from (Attack(f"file of a repository: {name!r}", _safe_name(name)) for name in SENT)
    loaders = {
        "recipe.yaml": load_recipe,
        "row template.yaml": load_row_template,
        "chat template.jinja": load_chat_template,
    }
    for what, load in loaders.items():
        end = what.rpartition(".")[2]
        for name in ("folder", "pipe", "loop", "missing", "zero"):
            yield Attack(
                f"{what} that is a {name}",
                lambda place, load=load, file=f"{name}.{end}": load(str(place / file)),  # type: ignore[misc]
                prepare=_put_what_is_no_file,
            )
    for address in (
        "s3://key:secret@bucket/x",
        "https://user:secret@192.0.2.1/x",
        "file:///etc/passwd",
        "local:///etc/passwd",
        "org/../x",
        "-o/x",
        "folder:",
    ):
        yield Attack(
            f"address: {address}", lambda _, a=address: parse_source(a), address.startswith(("file:", "local:"))
        )  # type: ignore[misc]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
