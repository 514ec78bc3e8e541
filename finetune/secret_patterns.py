"""What keys, tokens and passwords look like; one list for recipes, where none may stand, and for rows of data.

A recipe is refused for anything of such a shape. Rows are prose and code, where `sk-xxxxxxxx` or `user:password@host`
is a stand-in, and a slug or an identifier may begin like a key: there a value must look as if it had been drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from finetune.errors import DataError
from finetune.secret_values import is_credential, is_drawn, is_no_stand_in, is_password

SHOWN = 5
"""Places that a refusal names."""


@dataclass(frozen=True)
class SecretPattern:
    """One format: its name for messages, what it looks like, and how a real value is told from a stand-in."""

    kind: str
    begins: tuple[str, ...]
    """One of these, in small letters, stands in every text that matches; they are looked for first, being quicker."""
    shape: re.Pattern[str]
    """The format, with the part that is secret as the group `value`."""
    described: str
    """Where the format is described."""
    least: int
    """Characters that `value` has at least, if it is real."""
    is_real: Callable[[re.Match[str]], bool]
    """Whether a value of that length is more than a stand-in."""


@dataclass(frozen=True)
class SecretSpan:
    """Characters from `start` to before `stop` that have the shape of a secret; what stands there is not kept."""

    kind: str
    start: int
    stop: int


def secret_spans(text: str) -> list[SecretSpan]:
    """Everything that has the shape of a secret, stand-ins among it, in the order of the text, without overlaps."""
    spans = (SecretSpan(pattern.kind, *match.span()) for pattern, match in _matches(text))
    return _without_overlaps(sorted(spans, key=lambda span: (span.start, -span.stop)))


def secrets_in(text: str) -> tuple[str, ...]:
    """Kinds of the secrets in a row's text, each once; stand-ins such as `YOUR_API_KEY` and `xxxx` are none."""
    found = (
        pattern.kind
        for pattern, match in _matches(text)
        if len(match["value"]) >= pattern.least and pattern.is_real(match)
    )
    return tuple(dict.fromkeys(found))


def refuse_secrets(found: Sequence[tuple[str, int, str]]) -> None:
    """Stop if there are secrets: file, line and kinds of each; what they are is not shown.

    Raises:
        DataError: with the first five places, and what to do.
    """
    if not found:
        return
    shown = "; ".join(f"{file}:{line}: {kinds}" for file, line, kinds in found[:SHOWN])
    more = f"; and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
    rows = "1 row holds" if len(found) == 1 else f"{len(found):,} rows hold"
    raise DataError(
        f"{rows} what looks like a password or a key: {shown}{more}",
        hint="take them out and revoke them; `privacy: {secrets: set_aside}` in the recipe leaves such rows out",
    )


def _matches(text: str) -> Iterator[tuple[SecretPattern, re.Match[str]]]:
    lowered = text.lower()
    for pattern in PATTERNS:
        if any(beginning in lowered for beginning in pattern.begins):
            yield from ((pattern, match) for match in pattern.shape.finditer(text))


def _without_overlaps(spans: list[SecretSpan]) -> list[SecretSpan]:
    kept: list[SecretSpan] = []
    for span in spans:
        if not kept or span.start >= kept[-1].stop:
            kept.append(span)
    return kept


# Chinese characters are letters to `\b`: what stands before a key is asked for in ASCII.
_ALONE = r"(?<![A-Za-z0-9])"
_IN_ADDRESS = r"""(?:(?![][/@:"'<>(),])[!-~])"""
_NAMED = (
    r"(?:passwor[dt]|passwd|passphrase|kennwort|密码|口令|(?:api|access|secret|private|account|auth)[_ -]?key"
    r"|(?:auth|access|api|bearer|refresh|secret)[_ -]?token|client[_ -]?secret)"
)
# A line may end as it does in a file, or as in a program: with a backslash before the end, or with a written \n.
_LINE_END = r"(?:\\{0,4}\r?\n|\\{1,4}[nr])"
_INDENT = r"[ \t]{0,200}+"
_SHORT_LINE = rf"[^\n\\\0]{{0,16}}+{_LINE_END}"
_HEADER_LINE = rf"[^:\n\\\0]{{1,80}}+:[ \t](?:[^\n\\\0]|\\{{1,4}}+(?![nr\r\n\\])){{0,250}}+{_LINE_END}"
# Between the first line of a key and its base 64 may stand lines such as `DEK-Info: AES-128-CBC,…`, which are not
# secret, and lines with little on them; each may be quoted, and all may have been joined with spaces.
_BEFORE_KEY = (
    rf"(?:{_INDENT}(?:{_SHORT_LINE}|{_HEADER_LINE})){{0,12}}+"
    rf"{_INDENT}(?:|(?:(?!-{{4}})[^\n\\\0]){{1,200}}?(?<![A-Za-z0-9+/=]))"
)
_BASE64 = r"(?:[A-Za-z0-9+/=]|\\/)"
_NARROW_LINE = rf"{_BASE64}{{20,59}}+(?!{_BASE64})"
_KEY = rf"{_BASE64}{{60,100}}|{_NARROW_LINE}(?:(?:[\s\"',]|\\{{1,4}}[nr]){{1,40}}{_NARROW_LINE}){{2}}"

PATTERNS: tuple[SecretPattern, ...] = (
    SecretPattern(
        "Hugging Face token",
        ("hf_",),
        re.compile(_ALONE + r"hf_(?P<value>[A-Za-z0-9]{16,})"),
        "https://huggingface.co/docs/hub/security-tokens",
        30,
        is_drawn,
    ),
    SecretPattern(
        "OpenAI or Anthropic key",
        ("sk-",),
        re.compile(r"(?<![A-Za-z0-9_-])sk-(?P<value>[A-Za-z0-9_-]{16,})"),
        "https://platform.openai.com/docs/api-reference/authentication, https://docs.claude.com/en/api/overview",
        32,
        is_drawn,
    ),
    SecretPattern(
        "GitHub token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
        re.compile(_ALONE + r"(?:gh[pousr]_|github_pat_)(?P<value>[A-Za-z0-9_]{20,})"),
        "https://github.blog/2021-04-05-behind-githubs-new-authentication-token-formats/",
        36,
        is_drawn,
    ),
    SecretPattern(
        "GitLab token",
        ("glpat-", "gldt-", "glrt-", "glcbt-", "glptt-", "gloas-", "glsoat-", "glft-"),
        re.compile(_ALONE + r"gl(?:pat|dt|rt|cbt|ptt|oas|soat|ft)-(?P<value>[A-Za-z0-9_-]{20,})"),
        "https://docs.gitlab.com/security/tokens/#token-prefixes",
        20,
        is_drawn,
    ),
    SecretPattern(
        "AWS access key",
        ("akia", "asia", "abia", "acca"),
        re.compile(_ALONE + r"(?:AKIA|ASIA|ABIA|ACCA)(?P<value>[A-Z2-7]{16})(?![A-Za-z0-9])"),
        "https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html#identifiers-unique-ids",
        16,
        is_no_stand_in,
    ),
    SecretPattern(
        "AWS secret key",
        ("aws",),
        re.compile(r"(?i:aws.{0,20}secret.{0,20}?)[:=\s\"']{1,6}(?P<value>[A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"),
        "https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_access-keys.html",
        40,
        is_drawn,
    ),
    SecretPattern(
        "Google key",
        ("aiza", "gocspx-", "ya29."),
        re.compile(_ALONE + r"(?:AIza|GOCSPX-|ya29\.)(?P<value>[A-Za-z0-9_-]{28,})"),
        "https://cloud.google.com/docs/authentication/api-keys",
        28,
        is_drawn,
    ),
    SecretPattern(
        "Slack token",
        ("xox", "xapp-", "hooks.slack.com/services/"),
        re.compile(
            _ALONE
            + r"(?:xox[abeoprs]-|xapp-|hooks\.slack\.com/services/)"
            + r"(?:[A-Za-z0-9]{1,64}[-/]){0,6}(?P<value>[A-Za-z0-9]{20,})"
        ),
        "https://api.slack.com/concepts/token-types",
        20,
        is_drawn,
    ),
    SecretPattern(
        "SendGrid key",
        ("sg.",),
        re.compile(_ALONE + r"SG\.[A-Za-z0-9_-]{16,32}\.(?P<value>[A-Za-z0-9_-]{30,})"),
        "https://www.twilio.com/docs/sendgrid/ui/account-and-settings/api-keys",
        40,
        is_drawn,
    ),
    SecretPattern(
        "Groq key",
        ("gsk_",),
        re.compile(_ALONE + r"gsk_(?P<value>[A-Za-z0-9]{30,})"),
        "https://console.groq.com/docs/quickstart",
        40,
        is_drawn,
    ),
    SecretPattern(
        "Stripe key",
        ("k_live_", "whsec_"),
        re.compile(_ALONE + r"(?:[sr]k_live_|whsec_)(?P<value>[A-Za-z0-9]{20,})"),
        "https://docs.stripe.com/keys",
        20,
        is_drawn,
    ),
    SecretPattern(
        "Azure storage key",
        ("accountkey",),
        re.compile(r"AccountKey=(?P<value>[A-Za-z0-9+/]{86})=="),
        "https://learn.microsoft.com/azure/storage/common/storage-account-keys-manage",
        86,
        is_drawn,
    ),
    SecretPattern(
        "package registry token",
        ("npm_", "pypi-ageichlwas5vcmc"),
        re.compile(_ALONE + r"(?:npm_|pypi-AgEIcHlwaS5vcmc)(?P<value>[A-Za-z0-9_-]{36,})"),
        "https://docs.npmjs.com/about-access-tokens, https://pypi.org/help/#apitoken",
        36,
        is_drawn,
    ),
    SecretPattern(
        "signed web token",
        ("eyj",),
        # The payload that is left out is that of the token which https://jwt.io shows.
        re.compile(
            r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{10,}\.(?!eyJzdWIiOiIxMjM0NTY3ODkw)eyJ[A-Za-z0-9_-]{10,}"
            r"\.(?P<value>[A-Za-z0-9_-]{20,})"
        ),
        "https://www.rfc-editor.org/rfc/rfc7519",
        20,
        is_drawn,
    ),
    SecretPattern(
        "private key",
        ("private key",),
        re.compile(rf"-{{4,5}} ?BEGIN [A-Z0-9 ]{{0,20}}PRIVATE KEY(?: BLOCK)? ?-{{4,5}}{_BEFORE_KEY}(?P<value>{_KEY})"),
        "https://www.rfc-editor.org/rfc/rfc7468, https://www.rfc-editor.org/rfc/rfc9580#section-6.2",
        60,
        is_drawn,
    ),
    SecretPattern(
        "PuTTY private key",
        ("private-lines",),
        re.compile(
            rf"Private-Lines: ?[0-9]{{1,3}}(?:{_INDENT}{_SHORT_LINE}){{0,4}}+"
            rf"{_INDENT}[^\n\\\0]{{0,16}}?(?P<value>{_BASE64}{{40,100}})"
        ),
        "https://the.earth.li/~sgtatham/putty/latest/htmldoc/AppendixC.html",
        44,
        is_drawn,
    ),
    SecretPattern(
        "password in an address",
        ("://",),
        re.compile(rf"""://(?P<user>{_IN_ADDRESS}*):(?P<value>(?:{_IN_ADDRESS}|:)+)@(?P<host>[^\s/:@]+)"""),
        "https://www.rfc-editor.org/rfc/rfc3986#section-3.2.1",
        6,
        is_credential,
    ),
    SecretPattern(
        "password or key by name",
        ("passwor", "passwd", "passphrase", "kennwort", "密码", "口令", "key", "token", "secret"),
        re.compile(
            rf"""(?i:{_NAMED})["'`*]{{0,3}}\s{{0,3}}(?:=>|:=|=|:|：|是|为|(?i:\bis\b|\blautet\b))\s{{0,3}}"""
            r"""(?P<quote>["'`]?)(?=[!-~]{0,200}[0-9])(?P<value>(?:(?!["'`<>{}])[!-~]){12,200})"""
        ),
        "https://owasp.org/www-community/vulnerabilities/Use_of_hard-coded_password",
        12,
        is_password,
    ),
)
"""Every format that is looked for; those with a prefix of their own before those that go by what stands beside them."""
