"""A YAML text cut at the dashes of its list of entries, where it is provably that simple.

Borders are found without a look at what lies between them: whether a piece is one whole entry
shows when it is parsed alone.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable, Iterator

from yaml.nodes import MappingNode, ScalarNode

from chump_orchestrator.adapters.yaml_nodes import compose_carefully

GAPS = "gaps"

_LIST = re.compile(
    rb"(?:\A|\n)gaps:(?: +#[^\n]*| *)\n(?: *(?:#[^\n]*)?\n)*( *)-(?=[ \t\n])",
)
_ODD_BREAKS = ("\r", "\x85", "\u2028", "\u2029", "\0")
_MARKERS = re.compile(rb"(?:\A|\n)(?:---|\.\.\.|%)")
_HEADER_MARKERS = re.compile(rb"(?:\A|\n)(?:\.\.\.|%)")

_AT_ONCE = 2047
"""Bytes that are hashed without letting go of the interpreter's lock.

Whoever waits for the lock asks for it after 5 ms in which it was not let go. A thread that lets go
for an instant every millisecond, before anybody could wake up, is never asked: the loop waited for
200 ms and more, measured with CPython 3.11.
"""


class NotSimple(Exception):
    """The text has to be parsed as a whole."""


def digest_of(piece: bytes) -> bytes:
    """Return what stands for the bytes of an entry."""
    digest = hashlib.sha256(piece[:_AT_ONCE])
    for at in range(_AT_ONCE, len(piece), _AT_ONCE):
        digest.update(piece[at : at + _AT_ONCE])
    return digest.digest()


class Text:
    """Cuts a text into what precedes the list of entries, each entry's bytes, and the rest.

    Holds no more of it than a chunk and the entry at hand.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = _plain_chunks(chunks)
        self._data = b""
        self._start = 0
        self._rest = b""
        self._ended = False
        self._over = False
        self._beyond = re.compile(b"")
        self.indentation = 0
        self.begins = 0
        """Where the first entry's line does, in bytes."""

    def open_list(self) -> int:
        """Check what precedes the list, and return how many lines that are."""
        self._more()
        head = _LIST.search(self._data)
        if head is None:
            raise NotSimple
        self._indent(len(head[1]))
        self._start = self.begins = head.start(1)
        own = head.start() + (self._data[head.start() : head.start() + 1] == b"\n")
        before = self._data[:own]
        if _HEADER_MARKERS.search(before):
            raise NotSimple
        _check_surroundings(before)
        return self._data.count(b"\n", 0, self._start)

    def go_on(self, indentation: int) -> None:
        """Take the text for entries alone, of a list that is indented like this."""
        self._more()
        self._indent(indentation)

    def pieces(self) -> Iterator[bytes]:
        """Give the bytes of each entry, in whole lines; the last ones may hold more (`cut`)."""
        # A repeated blank, instead of so many of them, would be searched for at half the speed.
        item = re.compile(rb"\n%b-(?=[ \t\n])" % (b" " * self.indentation))
        while not self._ended or self._start < len(self._data):
            for border in item.finditer(self._data, self._start):
                piece = self._data[self._start : border.start() + 1]
                self._start = border.start() + 1
                yield piece
                if self._over:
                    return
            if self._ended:
                piece = self._data[self._start :]
                self._start = len(self._data)
                yield piece
                return
            self._data = self._data[self._start :]
            self._start = 0
            self._more()

    def cut(self, piece: bytes) -> bytes:
        """Return what of the piece belongs to its entry; if not all, the list is over."""
        end = self._beyond.search(piece)
        if end is None:
            return piece
        self._over = True
        own = end.start() + 1
        self._rest = piece[own:] + self._data[self._start :]
        return piece[:own]

    def close(self) -> None:
        """Check what follows the list."""
        rest = self._rest + b"".join(self._chunks)
        if _MARKERS.search(rest):
            raise NotSimple
        _check_surroundings(rest)

    def _indent(self, indentation: int) -> None:
        self.indentation = indentation
        left = indentation - 1
        self._beyond = re.compile(rb"\n {0,%d}[^ \n#]" % left if left >= 0 else rb"\n[^ \n#]")

    def _more(self) -> None:
        # As much again as there is: an entry of many chunks would be searched for each otherwise.
        parts, missing = [self._data], max(1, len(self._data))
        while missing > 0 and not self._ended:
            chunk = next(self._chunks, b"")
            self._ended = not chunk
            parts.append(chunk)
            missing -= len(chunk)
        self._data = b"".join(parts)


def _plain_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Give the chunks on; `NotSimple` if there are other line breaks in them than newlines."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for chunk in chunks:
            if chunk:
                text = decoder.decode(chunk)
                if any(odd in text for odd in _ODD_BREAKS):
                    raise NotSimple
                yield chunk
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise NotSimple from error


def _check_surroundings(data: bytes) -> None:
    """Raise `NotSimple` unless the text is nothing, or keys at the left edge besides `gaps`."""
    root = compose_carefully(data)
    if root is None or (
        isinstance(root, ScalarNode) and root.start_mark.index == root.end_mark.index
    ):
        return
    if not isinstance(root, MappingNode) or root.flow_style or root.start_mark.column:
        raise NotSimple
    if any(
        not isinstance(key, ScalarNode) or key.value == GAPS or key.start_mark.column
        for key, _ in root.value
    ):
        raise NotSimple
