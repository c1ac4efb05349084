"""What secrets look like in bytes: the very values that are known, and the shapes of tokens.

Pure. Shapes are those whose form alone tells what they are, so that few are found which are none;
what is plainly an example is passed over.
"""

from __future__ import annotations

import base64
import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

OWN = "a secret of the orchestrator's own"
"""The rule of known values, which no allow-list lets pass."""

SHORTEST_KNOWN = 8
"""Characters; shorter values stand in half of all files."""

LEAST_VARIETY = 8
"""Different characters that a token has at least; `xxxxxxxxxxxx` is none."""


@dataclass(frozen=True, slots=True)
class Match:
    """Something found: by which rule, and the bytes themselves, which nobody is shown."""

    rule: str
    found: bytes


@dataclass(frozen=True, slots=True)
class _Shape:
    """A token's shape, tried only where one of `words` stands: `back` bytes before it.

    To look for words is fast; a search for the shape itself would try it at every byte.
    """

    rule: str
    words: tuple[bytes, ...]
    pattern: re.Pattern[bytes]
    back: int = 0


def _shape(rule: str, words: str, pattern: str, back: int = 0) -> _Shape:
    whole = re.compile(rf"({pattern})(?![A-Za-z0-9])".encode())
    return _Shape(rule, tuple(w.encode() for w in words.split()), whole, back)


_SHAPES = (
    _shape("AWS access key", "AKIA ASIA", r"(?:AKIA|ASIA)[A-Z2-7]{16}"),
    _shape(
        "AWS secret key",
        "aws_secret AWS_SECRET secretAccessKey SecretAccessKey",
        r"""(?i:aws_secret_access_key|secretaccesskey)["']?\s{0,8}[=:]\s{0,8}["']?"""
        r"[A-Za-z0-9/+]{40}",
    ),
    _shape("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9]{36,255}"),
    _shape("GitHub token", "github_pat_", r"github_pat_[A-Za-z0-9_]{50,255}"),
    _shape("GitLab token", "glpat- glrt- gldt- glptt-", r"gl(?:pat|rt|dt|ptt)-[\w-]{20,300}"),
    _shape("Slack token", "xox", r"xox[abeoprs]-(?:\d-)?[A-Za-z0-9]{10,}-[A-Za-z0-9-]{16,300}"),
    _shape("Slack token", "xapp-", r"xapp-\d-[A-Za-z0-9-]{30,300}"),
    _shape(
        "Slack webhook",
        "hooks.slack.com",
        r"hooks\.slack\.com/(?:services|workflows)/T[A-Z0-9]{6,}/[A-Z0-9]{6,}/[A-Za-z0-9]{18,}",
    ),
    _shape("Anthropic key", "sk-ant-", r"sk-ant-[a-z0-9]{2,12}-[\w-]{40,300}"),
    _shape("OpenAI key", "sk-", r"sk-(?:proj|svcacct|admin|None)-[\w-]{40,300}"),
    _shape("OpenAI key", "T3BlbkFJ", r"sk-[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}", 23),
    _shape("OpenRouter key", "sk-or-v1-", r"sk-or-v1-[0-9a-f]{64}"),
    _shape("Google key", "AIza", r"AIza[\w-]{35}"),
    _shape("Google client secret", "GOCSPX-", r"GOCSPX-[\w-]{28}"),
    _shape("Stripe key", "k_live_", r"[sr]k_live_[A-Za-z0-9]{20,250}", 1),
    _shape("npm token", "npm_", r"npm_[A-Za-z0-9]{36}"),
    _shape("Python index token", "pypi-AgE", r"pypi-AgE[\w-]{50,1000}"),
    _shape("Hugging Face token", "hf_", r"hf_[A-Za-z]{34}"),
    _shape("SendGrid key", "SG.", r"SG\.[\w-]{22}\.[\w-]{43}"),
    _shape("DigitalOcean token", "dop_v1_ doo_v1_", r"do[op]_v1_[a-f0-9]{64}"),
    _shape("age key", "AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
)

_KEY = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]{1,16} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    rb"(?:[\s\"'+,]|\\[nr])*+"
    rb"(?:[A-Za-z-]{1,32}: [^\r\n\\\"]{0,200}(?:[\s\"'+,]|\\[nr])++){0,4}+"
    rb"([A-Za-z0-9+/=]{40,400})"
)
"""The first line of a private key, what programs write around it, and the beginning of its body."""

_IN_WORDS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_ESCAPES = (b"\\n", b"\\r", b"\\t")

_MADE_UP = re.compile(
    rb"example|sample|dummy|placeholder|changeme|change-me|redacted|your[_-]|fake|xxxx|0{8}"
    rb"|12345678|abcdefgh|test_?token",
    re.IGNORECASE,
)


def shapes_in(data: bytes) -> Iterator[Match]:
    """Yield what has the shape of a secret; takes time in proportion to the data."""
    for text in _as_bytes(data):
        for shape in _SHAPES:
            for word in shape.words:
                yield from _shaped(text, shape, word)
        # A key has a body; its first line alone is the stuff of documentation.
        for start in _places(text, b"-----BEGIN "):
            key = _KEY.match(text, start)
            if key is not None and not _is_made_up(key[1]):
                yield Match("private key", key[1])


def _shaped(text: bytes, shape: _Shape, word: bytes) -> Iterator[Match]:
    for place in _places(text, word):
        start = place - shape.back
        hit = shape.pattern.match(text, start) if start >= 0 else None
        if hit is not None and _begins_a_word(text, start) and not _is_made_up(hit[1]):
            yield Match(shape.rule, hit[1])


def _places(text: bytes, word: bytes) -> Iterator[int]:
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + len(word))


def _begins_a_word(text: bytes, start: int) -> bool:
    """Whether a word begins there; behind an escape of JSON, one does."""
    return (
        start == 0
        or text[start - 1] not in _IN_WORDS
        or text[max(start - 2, 0) : start] in _ESCAPES
    )


def _is_made_up(token: bytes) -> bool:
    return len(set(token)) < LEAST_VARIETY or _MADE_UP.search(token) is not None


def _as_bytes(data: bytes) -> tuple[bytes, ...]:
    """Return the data, and its text where that is in UTF-16, as editors on Windows write it."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data, data.decode("utf-16", "replace").encode("utf-8", "replace")
    return (data,)


class KnownSecrets:
    """The values that must never be shipped, also as other programs write them."""

    def __init__(self, values: Iterable[str]) -> None:
        written: set[bytes] = set()
        for value in values:
            # The first line of a key that has several stands in every book about keys.
            if len(value) >= SHORTEST_KNOWN and not value.startswith("-----"):
                written |= _ways_of_writing(value)
        self._written = sorted(written, key=lambda one: (-len(one), one))

    def found_in(self, data: bytes) -> Iterator[Match]:
        """Yield those that stand in the data, each once."""
        for text in _as_bytes(data):
            for written in self._written:
                if written in text:
                    yield Match(OWN, written)


def _ways_of_writing(value: str) -> set[bytes]:
    plain = value.encode("utf-8", "surrogateescape")
    ways = {
        plain,
        json.dumps(value)[1:-1].encode(),
        quote(plain, safe="").encode(),
        value.encode("utf-16-le", "replace"),
        plain.hex().encode(),
    }
    for shift in range(3):
        # Where it begins within a longer text decides about its letters; those at the borders
        # depend on the neighbours.
        encoded = base64.b64encode(b"\0" * shift + plain)
        core = encoded[4 if shift else 0 : -4]
        if len(core) >= SHORTEST_KNOWN:
            ways |= {core, core.translate(bytes.maketrans(b"+/", b"-_"))}
    return ways
