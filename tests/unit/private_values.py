"""Made-up personal data and secrets, right to the check digit, and what only resembles them."""

from __future__ import annotations

import json
import random
import string
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import date, timedelta

from phonenumbers import PhoneNumberFormat, PhoneNumberType, example_number_for_type, format_number, is_valid_number

Make = Callable[[random.Random], str]

SENTENCES = (
    "Please write to {} before Friday.",
    "{}",
    "The customer ({}) has not answered, see below.",
    "Contact: {}; thank you!",
    '"{}"',
    "First line.\nSecond: {}\nThird.",
    "请联系{}，谢谢。",
    "他说是{}。",
    "资料（{}）已收到",
    "号码：{}",
)
FULL_WIDTH = str.maketrans(string.digits, "０１２３４５６７８９")
HEX = "0123456789abcdef"
ALPHANUMERIC = string.ascii_letters + string.digits


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


def drawn(rng: random.Random, count: int, alphabet: str = ALPHANUMERIC) -> str:
    return "".join(rng.choices(alphabet, k=count))


def sentence(rng: random.Random, value: str) -> str:
    return rng.choice(SENTENCES).format(value)


def email(rng: random.Random) -> str:
    local = rng.choice(("anna", "j.smith", "li-wei", "info+news", "m_müller", "x", "o'neill"))
    domain = rng.choice(("firm", "mail-box", "uni", "sub.clinic"))
    top = rng.choice(("de", "com", "org", "co.uk", "cn", "museum"))
    return f"{local}{rng.randrange(1000)}@{domain}{rng.randrange(100)}.{top}"


def luhn_digit(number: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(number)):
        doubled = int(digit) * (2 if place % 2 == 0 else 1)
        total += doubled - 9 if doubled > 9 else doubled
    return str(-total % 10)


def plain_card(rng: random.Random) -> str:
    prefix, length = rng.choice(
        (("4", 16), ("51", 16), ("2221", 16), ("6011", 16), ("37", 15), ("3528", 16), ("622848", 19), ("36", 14))
    )
    number = prefix + digits(rng, length - 1 - len(prefix))
    return number + luhn_digit(number)


def card(rng: random.Random) -> str:
    number = plain_card(rng)
    groups = {16: (4, 4, 4, 4), 15: (4, 6, 5), 14: (4, 6, 4), 19: (6, 13)}[len(number)]
    return grouped(number, groups, rng.choice((" ", "-", ""))).translate(rng.choice((FULL_WIDTH, {})))


def grouped(number: str, sizes: tuple[int, ...], between: str) -> str:
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return between.join(number[end - size : end] for end, size in zip(ends, sizes, strict=True))


def plain_iban(rng: random.Random) -> str:
    country, account = rng.choice(
        (
            ("DE", digits(rng, 18)),
            ("AT", digits(rng, 16)),
            ("GB", drawn(rng, 4, string.ascii_uppercase) + digits(rng, 14)),
        )
    )
    written = "".join(str(int(character, 36)) for character in account + country + "00")
    return f"{country}{98 - int(written) % 97:02d}{account}"


def iban(rng: random.Random) -> str:
    number = plain_iban(rng)
    fours = tuple(min(4, len(number) - start) for start in range(0, len(number), 4))
    return grouped(number, fours, rng.choice((" ", "", "-"))).translate(rng.choice((FULL_WIDTH, {})))


def us_ssn(rng: random.Random) -> str:
    area = rng.choice([number for number in range(1, 900) if number != 666])
    number = f"{area:03d}-{rng.randrange(1, 100):02d}-{rng.randrange(1, 10000):04d}"
    return number.translate(rng.choice((FULL_WIDTH, {})))


def plain_cn_id(rng: random.Random) -> str:
    region = rng.choice(("110101", "310225", "510202", "412724", "320582", "810000", "440305", "931840"))
    born = date(1930, 1, 1) + timedelta(days=rng.randrange(30000))
    number = f"{region}{born:%Y%m%d}{digits(rng, 3)}"
    weighed = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number))
    return number + "10X98765432"[weighed % 11]


def cn_id(rng: random.Random) -> str:
    number = grouped(plain_cn_id(rng), (6, 8, 4), rng.choice(("", "", " ", "-")))
    return rng.choice((number, number.lower(), number.translate(FULL_WIDTH)))


def phone(rng: random.Random, region: str | None = None) -> str:
    """With its country code, or with a region as it is dialled there."""
    kind = rng.choice((PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE))
    country = region or rng.choice(("US", "DE", "CN", "GB", "FR", "IN", "BR", "JP"))
    while True:
        number = example_number_for_type(country, kind)
        number.national_number = number.national_number // 10000 * 10000 + rng.randrange(10000)
        if is_valid_number(number):
            break
    form = (
        PhoneNumberFormat.NATIONAL if region else rng.choice((PhoneNumberFormat.E164, PhoneNumberFormat.INTERNATIONAL))
    )
    return format_number(number, form).translate(rng.choice((FULL_WIDTH, {})))


def phone_abroad(rng: random.Random) -> str:
    """With its country code as it is dialled in another country."""
    number = phone(rng)
    plus = number[0]
    prefix = rng.choice(("00", "00 ", "011 ", "011-", "011"))
    return number.replace(plus, prefix if plus == "+" else prefix.translate(FULL_WIDTH))


PRIVATE: dict[str, Make] = {
    "email": email,
    "phone": phone,
    "iban": iban,
    "card": card,
    "us_ssn": us_ssn,
    "cn_id": cn_id,
}


def wrong_digit(number: str, place: int) -> str:
    """The number with another digit at a place, so that its check digit is wrong."""
    return number[:place] + str((int(number[place]) + 1) % 10) + number[place + 1 :]


def _jwt(rng: random.Random) -> str:
    head, body = (
        urlsafe_b64encode(json.dumps(part, separators=(",", ":")).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", "typ": "JWT"}, {"sub": digits(rng, 9), "iat": rng.randrange(10**9)})
    )
    return f"{head}.{body}.{drawn(rng, 43, ALPHANUMERIC + '-_')}"


def _key_body(rng: random.Random, width: int = 64) -> str:
    return "\n".join(drawn(rng, width, ALPHANUMERIC + "+/") for _ in range(3))


def _private_key(rng: random.Random, *headers: str) -> str:
    kind = rng.choice(("", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "))
    head = "".join(f"{line}\n" for line in (*headers, "") if headers)
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{head}{_key_body(rng)}\n-----END {kind}PRIVATE KEY-----"


def _pgp_key(rng: random.Random) -> str:
    headers = (
        "Version: GnuPG v2.0.22 (GNU/Linux)\nComment: GPGTools - https://gpgtools.org",
        "Version: BCPG C# v1.6.1.0",
        "Comment: 用于签名\nHash: SHA512",
    )
    block = "PGP PRIVATE KEY BLOCK-----"
    return f"-----BEGIN {block}\n{rng.choice(headers)}\n\n{_key_body(rng)}\n=aB3d\n-----END {block}"


def _ssh2_key(rng: random.Random) -> str:
    kind = "SSH2 ENCRYPTED PRIVATE KEY ----"
    return f'---- BEGIN {kind}\nComment: "imported-openssh-key"\n{_key_body(rng, 70)}\n---- END {kind}'


def _putty_key(rng: random.Random) -> str:
    kind, count, width = rng.choice((("ssh-rsa", 3, 64), ("ssh-ed25519", 1, 48)))
    body = "\n".join(drawn(rng, width, ALPHANUMERIC + "+/") for _ in range(count))
    head = (
        f"PuTTY-User-Key-File-2: {kind}\nEncryption: none\nComment: rsa-key-2020\nPublic-Lines: 1\nAAAAB3NzaC1yc2E=\n"
    )
    return f"{head}Private-Lines: {count}\n{body}\nPrivate-MAC: {drawn(rng, 40, HEX)}"


def _every_line(text: str, before: str, after: str = "") -> str:
    return "\n".join(f"{before}{line}{after}" for line in text.split("\n"))


def _quoted_key(rng: random.Random) -> str:
    return _every_line(_private_key(rng), rng.choice(("> ", ">> > ", "# ", "  // ", "+", " " * 40, "12 | ")))


def _key_in_program(rng: random.Random) -> str:
    key = rng.choice((_private_key(rng), _pgp_key(rng)))
    before, after = rng.choice((('    "', '\\n" +'), ("'", "\\n',"), ('key += "', '\\n";'), ("", "\\n\\")))
    return _every_line(key, before, after)


def _key_in_json(rng: random.Random) -> str:
    key = json.dumps(rng.choice((_private_key(rng), _pgp_key(rng))))
    return rng.choice((key, key.replace("/", "\\/"), json.dumps(key)))


def _key_in_one_line(rng: random.Random) -> str:
    key = rng.choice((_private_key(rng), _pgp_key(rng)))
    return key.replace("\n", rng.choice((" ", "<br>")))


def _password(rng: random.Random) -> str:
    pieces = [rng.sample(some, 4) for some in (string.ascii_lowercase, string.ascii_uppercase, "56789", "!#%+")]
    return "".join(rng.sample([character for piece in pieces for character in piece], 16))


SECRETS: dict[str, Make] = {
    "Hugging Face": lambda rng: "hf_" + drawn(rng, 34),
    "OpenAI": lambda rng: rng.choice(("sk-", "sk-proj-", "sk-svcacct-")) + drawn(rng, 48),
    "Anthropic": lambda rng: "sk-ant-api03-" + drawn(rng, 93, ALPHANUMERIC + "-_") + "AA",
    "GitHub": lambda rng: rng.choice(("ghp_", "gho_", "ghu_", "ghs_", "ghr_")) + drawn(rng, 36),
    "GitHub, fine-grained": lambda rng: f"github_pat_{drawn(rng, 22)}_{drawn(rng, 59)}",
    "GitLab": lambda rng: "glpat-" + drawn(rng, 20, ALPHANUMERIC + "-"),
    "AWS access key": lambda rng: rng.choice(("AKIA", "ASIA")) + drawn(rng, 16, string.ascii_uppercase + "234567"),
    "AWS secret key": lambda rng: "aws_secret_access_key = " + drawn(rng, 40, ALPHANUMERIC + "/+"),
    "Google": lambda rng: "AIza" + drawn(rng, 35, ALPHANUMERIC + "-_"),
    "Slack": lambda rng: f"xoxb-{digits(rng, 12)}-{digits(rng, 12)}-{drawn(rng, 24)}",
    "Slack webhook": lambda rng: (
        f"https://hooks.slack.com/services/T{digits(rng, 8)}/B{digits(rng, 8)}/{drawn(rng, 24)}"
    ),
    "Stripe": lambda rng: rng.choice(("sk_live_", "rk_live_")) + drawn(rng, 24),
    "Azure storage": lambda rng: f"AccountName=a;AccountKey={drawn(rng, 86, ALPHANUMERIC + '+/')}==;",
    "npm": lambda rng: "npm_" + drawn(rng, 36),
    "PyPI": lambda rng: "pypi-AgEIcHlwaS5vcmc" + drawn(rng, 100, ALPHANUMERIC + "-_"),
    "web token": _jwt,
    "private key": _private_key,
    "private key, narrow": lambda rng: f"-----BEGIN PRIVATE KEY-----\n{_key_body(rng, 32)}\n-----END PRIVATE KEY-----",
    "private key, encrypted": lambda rng: _private_key(
        rng, "Proc-Type: 4,ENCRYPTED", f"DEK-Info: AES-128-CBC,ABCDEF123456{drawn(rng, 20, HEX.upper())}"
    ),
    "private key, quoted": _quoted_key,
    "private key, in a program": _key_in_program,
    "private key, in JSON": _key_in_json,
    "private key, in one line": _key_in_one_line,
    "PGP private key": _pgp_key,
    "SSH2 private key": _ssh2_key,
    "PuTTY private key": _putty_key,
    "PuTTY private key, quoted": lambda rng: _every_line(_putty_key(rng), "> "),
    "SendGrid": lambda rng: f"SG.{drawn(rng, 22, ALPHANUMERIC + '-_')}.{drawn(rng, 43, ALPHANUMERIC + '-_')}",
    "Groq": lambda rng: "gsk_" + drawn(rng, 52),
    "connection string": lambda rng: f"postgresql://app:{_password(rng)}@db.firm.net:5432/main",
    "password": lambda rng: rng.choice(("password: {}", "api_key = '{}'", "密码是{}", '"access_token": "{}"')).format(
        _password(rng)
    ),
}
"""Format → a value as its issuer makes them."""

STAND_INS = (
    "YOUR_API_KEY",
    "api_key = 'YOUR_API_KEY_HERE_1234567'",
    "sk-...",
    "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "sk-proj-your-key-goes-here-and-not-in-the-code",
    "sk-learn-is-a-library-for-classical-machine-learning",
    "hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "hf_hub_download_with_retries_and_resume",
    "ghp_XXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX",
    "AKIAIOSFODNN7EXAMPLE",
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AIza...",
    "xoxb-your-token-here-xxxxxxxxxxxxxxxxxxxx",
    "postgresql://user:password@localhost:5432/db",
    "postgresql://user:<password>@db.firm.net/db",
    "https://${USER}:${TOKEN}@git.firm.net/repo.git",
    "mysql://root:root@127.0.0.1/db",
    "password: ********",
    "password = os.environ['DATABASE_PASSWORD_2']",
    "password: must have 8 characters and 1 digit",
    "the password is case-sensitive",
    "token = tokenizer.decode(ids[0]).strip()",
    "-----BEGIN RSA PRIVATE KEY-----\n...\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7...\n-----END PRIVATE KEY-----",
    "-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-128-CBC,0A1B2C3D4E5F60718293A4B5C6D7E8F9\n\n...",
    "A key begins with -----BEGIN PRIVATE KEY----- and its body follows in base 64, in lines of 64 characters each.",
    "-----BEGIN PRIVATE KEY----- stands first; see https://www.openssl.org/docs/man/openssl/genpkey/Algorithms/Ed25519",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: GnuPG v2.0.22 (GNU/Linux)\n\n<your key>",
    "-----BEGIN CERTIFICATE-----",
    "-----BEGIN CERTIFICATE-----\nMIIDdzCCAl+gAwIBAgIEAgAAuTANBgkqhkiG9w0BAQUFADBaMQswCQYDVQQGEwJJ",
    "PuTTY-User-Key-File-2: ssh-rsa\nPrivate-Lines: 14\n...",
    "Private-Lines: 14 says how many lines of base 64 follow it in the file.",
    "SG.xxxxxxxxxxxxxxxxxxxxxx.xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "gsk_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "gsk_your_api_key_here",
    "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "commit 252a43d433dab569340b2bdc0e7184f258b7b9c3",
    "密码是您的生日，请尽快修改。",
)
"""What is written where a secret is meant, and what only begins like one."""


def look_alike(rng: random.Random) -> str:
    """What stands in ordinary text of law, medicine and trade and is nobody's number."""
    number = rng.randrange
    year = number(1950, 2026)
    isbn = f"978{digits(rng, 9)}"
    isbn += str(-sum(int(d) * (3 if place % 2 else 1) for place, d in enumerate(isbn)) % 10)
    return rng.choice(
        (
            f"{year}-{number(1, 13):02d}-{number(1, 29):02d}T{number(24):02d}:{number(60):02d}:00Z",
            f"{number(1, 29):02d}.{number(1, 13):02d}.{year}",
            f"{number(1, 13)}/{number(1, 29)}/{year}",
            f"{year}年{number(1, 13)}月{number(1, 29)}日",
            f"${number(1000):,},{number(1000):03d}.{number(100):02d}",
            f"{number(1000)}.{number(1000):03d},{number(100):02d} €",
            f"人民币{number(10**7)}.{number(100):02d}元",
            f"+{number(100)}.{number(10**6)} %",
            f"ISBN {grouped(isbn, (3, 1, 3, 5, 1), '-')}",
            isbn,
            f"GTIN: 00{digits(rng, 12)}",
            f"{number(1, 9)} 00{number(1, 9)} {number(100, 999)} {digits(rng, 3)} {digits(rng, 4)}",
            f"#00{number(1, 9)}{digits(rng, 10)}",
            f"v{number(20)}.{number(20)}.{number(2000)}-rc{number(9)}",
            f"42 U.S.C. § {number(1000, 9999)}({number(1, 9)})",
            f"({year})京{number(1, 99):02d}民终{number(10000)}号",
            f"No. {number(10, 24)}-cv-{number(10000):05d}",
            f"Case {year}-{number(1000):03d}-{number(10000):04d}-X",
            f"{rng.choice('ABCEIJS')}{number(100):02d}.{number(1000):03d}",
            f"https://www.firm.org/item/{digits(rng, 12)}?page={number(100)}#part-{number(10)}",
            f"https://medium.com/@writer/{drawn(rng, 12, HEX)}",
            f"doi:10.{number(1000, 9999)}/j.{drawn(rng, 4, string.ascii_lowercase)}.{year}.{digits(rng, 8)}",
            f"PMID: {digits(rng, 8)}",
            f"NCT{digits(rng, 8)}",
            f"192.168.{number(256)}.{number(256)}:{number(1024, 65536)}",
            f"{drawn(rng, 8, HEX)}-4{drawn(rng, 3, HEX)}-{drawn(rng, 12, HEX)}",
            drawn(rng, 40, HEX),
            f"@app.route('/v{number(9)}')",
            f"npm install @scope/tool@{number(9)}.{number(9)}.{number(9)}",
            f"logo@{number(2, 4)}x.png",
            f"git@host.org:team/repo{number(100)}.git",
            f"{number(100)}.{number(10)}-{number(100)}.{number(10)}/1000",
            f"{number(1, 400)}-{number(1, 400)} of {number(1000, 9999)}",
            f"CVE-{year}-{digits(rng, 5)}",
            f"3.{digits(rng, 16)}",
        )
    )
