"""Keep secrets out of what an agent prints, before it reaches a disk or a follower (promise I7).

Two kinds are replaced: the very values that this agent was given, and words that look like the
usual tokens. Both are found across the borders of chunks, in bounded memory, at the speed of a
pipe: a regular expression over everything would be ten times too slow, so text is first folded to
"may be part of a token" and blanks, and only runs long enough to be one are looked at.
"""

import json
import re

MARK = b"[redacted]"

MIN_SECRET = 8
"""Exact values shorter than this are words that would blank out half of a log."""

_RUN = 20
"""Characters in the shortest token that is known by its shape (`AKIA` and sixteen more)."""

_HOLD = 64
"""Bytes held back at least: more than any unfinished thing that could still become a token."""

_WORD = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
_FOLD = bytes(0x61 if code in _WORD else 0x20 for code in range(256))
_LONG = b"a" * _RUN

# A token begins its word, but for what stays behind of an escape sequence: the end of a colour
# (`ESC[32m`) or the letter of a JSON escape (`\n`).
_TOKEN = re.compile(
    rb"(?:[0-9]*m|[nrt])?"
    rb"((?:gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|sk-|AKIA)[A-Za-z0-9_-]{16,})"
)
_BEARER = re.compile(rb"(?<![A-Za-z])([Bb]earer )[A-Za-z0-9._~+/=-]{16,}")
_BEGINNINGS = (
    (b"_", (b"ghp_", b"gho_", b"ghs_", b"ghu_", b"ghr_", b"_pat_")),
    (b"-", (b"sk-", b"glpat-", b"xox")),
    (b"AKIA", (b"AKIA",)),
)
_PATIENCE = 64
"""Runs that turned out to be none, after which the beginnings themselves are searched for."""

_REST_OF_TOKEN = re.compile(rb"[A-Za-z0-9_-]*")
_REST_OF_BEARER = re.compile(rb"[A-Za-z0-9._~+/=-]*")


class Redactor:
    """Turns one stream of bytes, chunk by chunk, into the same without its secrets."""

    def __init__(self, secrets: list[str]) -> None:
        exact = set()
        for secret in secrets:
            if len(secret) >= MIN_SECRET:
                exact.add(secret.encode("utf-8", "surrogateescape"))
                # Agents print JSON, where a quote or a line break within a value is escaped.
                exact.add(json.dumps(secret)[1:-1].encode())
                exact.add(json.dumps(secret, ensure_ascii=False)[1:-1].encode("utf-8", "replace"))
        self._exact = sorted(exact, key=len, reverse=True)
        self._hold = max([_HOLD, *map(len, self._exact)])
        self._by_line = not any(b"\n" in secret for secret in self._exact)
        self._held = b""
        self._inside = False  # what was last let go ends within a word
        self._swallow: re.Pattern[bytes] | None = None  # the token that goes on

    @property
    def holds(self) -> bool:
        """Whether bytes are held back that only `flush` or more input will let go."""
        return bool(self._held)

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the stream; give those that are safe to show by now."""
        if self._swallow is not None:
            rest = self._swallow.match(chunk)
            chunk = chunk[rest.end() :] if rest else chunk
            if not chunk:
                return b""
            self._inside = False
        text, self._swallow = self._without_secrets(self._held + chunk if self._held else chunk)
        if self._swallow is not None:
            self._held = b""
            return text
        end = len(text)
        cut = max(0, end - self._hold)
        if self._by_line:  # no token goes over the end of a line: nothing of a line need wait
            cut = text.rfind(b"\n", cut) + 1 or cut
        self._held = text[cut:]
        return self._let_go(text[:cut] if cut < end else text)

    def flush(self) -> bytes:
        """Give what is held back: the stream has ended, or has been quiet for a while."""
        held, self._held = self._held, b""
        return self._let_go(held)

    def _let_go(self, text: bytes) -> bytes:
        if text:
            self._inside = text[-1] in _WORD
        return text

    def _without_secrets(self, text: bytes) -> tuple[bytes, re.Pattern[bytes] | None]:
        """The text with marks, and what matches the rest of a token that its end cuts through."""
        for secret in self._exact:
            if secret in text:
                text = text.replace(secret, MARK)
        cut: re.Pattern[bytes] | None = None
        if b"earer " in text:
            text, is_cut = _without_bearers(text)
            cut = _REST_OF_BEARER if is_cut else None
        folded = text.translate(_FOLD)
        start = folded.find(_LONG)
        if start < 0:
            return text, cut
        pieces: list[bytes] = []
        done = runs = 0
        while start >= 0:
            runs += 1
            if runs == _PATIENCE and not _may_begin(text):
                break  # a list of hashes, say
            end = folded.find(b" ", start + _RUN)
            if end < 0:
                end = len(text)
            # A run that began before this text was long enough to be judged there.
            token = None if start == 0 and self._inside else _TOKEN.match(text, start, end)
            if token is not None:
                pieces += (text[done : token.start(1)], MARK)
                done = end
                if end == len(text):
                    cut = _REST_OF_TOKEN
            start = folded.find(_LONG, end)
        pieces.append(text[done:])
        return b"".join(pieces), cut


def _without_bearers(text: bytes) -> tuple[bytes, bool]:
    """The text with marks for bearer tokens, and whether its end may cut through one."""
    pieces: list[bytes] = []
    done = 0
    for bearer in _BEARER.finditer(text):
        pieces += (text[done : bearer.end(1)], MARK)
        done = bearer.end()
    pieces.append(text[done:])
    return b"".join(pieces), 0 < done == len(text)


def _may_begin(text: bytes) -> bool:
    """Whether any beginning of a token is in there at all."""
    return any(
        beginning in text
        for sign, beginnings in _BEGINNINGS
        if sign in text
        for beginning in beginnings
    )
