"""The entries of one YAML text, each parsed once for as long as its bytes stay the same.

Most backlogs are a block list under `gaps:`. Such a text is cut at the dashes of that list, each
piece is parsed alone, and what came of it is kept under the digest of its bytes, so that one
changed entry costs one parse. Whatever is not provably that simple is parsed as a whole; the two
ways give the same answer.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from chump_orchestrator.adapters.parsed import Found, Parsed, moved
from chump_orchestrator.adapters.yaml_nodes import (
    Broken,
    Remark,
    compose,
    compose_carefully,
    value_of,
)
from chump_orchestrator.core.gap import Gap, Notice, Place, read_gap

GAPS = "gaps"

Chunks = Callable[[], Iterable[bytes]]
"""Opens the text anew and gives it piece by piece."""

_LIST = re.compile(
    rb"(?:\A|\n)gaps:(?: +#[^\n]*| *)\n(?: *(?:#[^\n]*)?\n)*( *)-(?=[ \t\n])",
)
_ODD_BREAKS = ("\r", "\x85", "\u2028", "\u2029", "\0")
_MARKERS = re.compile(rb"(?:\A|\n)(?:---|\.\.\.|%)")
_HEADER_MARKERS = re.compile(rb"(?:\A|\n)(?:\.\.\.|%)")


class _NotSimple(Exception):
    """The text has to be parsed as a whole."""


class Entries:
    """Reads the entries of one file again and again; not to be used by two threads at once.

    `known` are its pieces, by digest, as they were read last, by this process or another one.
    """

    def __init__(self, file: str, known: dict[bytes, Parsed] | None = None) -> None:
        self._file = file
        self.known = known or {}

    def read(self, chunks: Chunks, pause: Callable[[], None], *, alone: bool = False) -> Found:
        """Return what the text holds; `Broken` when it is no backlog.

        `pause` is called before each entry; what it raises ends the reading. With `alone`, a
        mapping without `gaps` is one entry itself (behaviour B1).
        """
        try:
            return self._read_pieces(chunks(), pause)
        except (_NotSimple, Broken):
            self.known = {}
        return self.read_whole(b"".join(chunks()), pause, alone=alone)

    def read_whole(self, data: bytes, pause: Callable[[], None], *, alone: bool = False) -> Found:
        """Do the same without cutting the text up."""
        root = compose_carefully(data, pause)
        found = Found()
        for node in self._items(root, found, alone=alone):
            pause()
            remarks: list[Remark] = []
            value = value_of(node, remarks)
            mark = node.start_mark
            place = Place(self._file, mark.line + 1, mark.column + 1)
            found.entries.append(read_gap(value, order=len(found.entries), place=place))
            found.notices += (
                Notice(told, Place(self._file, line + 1, column + 1))
                for told, line, column in remarks
            )
        return found

    def _items(self, root: Node | None, found: Found, *, alone: bool) -> list[Node]:
        if root is None or (isinstance(root, ScalarNode) and not root.value):
            raise Broken("there is nothing in it; expected a mapping with a list gaps", 1, 1)
        mark = root.start_mark
        if not isinstance(root, MappingNode):
            told = "expected a mapping with a list gaps"
            raise Broken(told, mark.line + 1, mark.column + 1)
        gaps: Node | None = None
        for key, value in root.value:
            if isinstance(key, ScalarNode) and key.value == GAPS:
                if gaps is not None:
                    place = Place(self._file, key.start_mark.line + 1, key.start_mark.column + 1)
                    told = f"key {GAPS} is given again; the last one counts"
                    found.notices.append(Notice(told, place))
                gaps = value
        if gaps is None and alone:
            return [root]
        if gaps is None:
            told = "there is no list gaps in it"
            raise Broken(told, mark.line + 1, mark.column + 1)
        if isinstance(gaps, SequenceNode):
            return list(gaps.value)
        if value_of(gaps, []) is None:
            return []
        mark = gaps.start_mark
        raise Broken(f"{GAPS}: expected a list of entries", mark.line + 1, mark.column + 1)

    def _read_pieces(self, chunks: Iterable[bytes], pause: Callable[[], None]) -> Found:
        text = _Text(chunks)
        line = text.open_list()
        known = self.known
        used: dict[bytes, Parsed] = {}
        found = Found()
        entries = found.entries
        for piece in text.pieces():
            pause()
            digest = hashlib.sha256(piece).digest()
            parsed = used.get(digest) or known.get(digest)
            if parsed is None:
                own = text.cut(piece)
                digest = hashlib.sha256(own).digest()
                parsed = known.get(digest) or self._parse(own)
            order = len(entries)
            entry = parsed.entry
            at = line + parsed.line + 1
            if entry.place.line != at or (isinstance(entry, Gap) and entry.order != order):
                place = Place(self._file, at, parsed.column + 1)
                parsed.entry = entry = moved(entry, order, place)
            for told, below, column in parsed.remarks:
                place = Place(self._file, line + below + 1, column + 1)
                found.notices.append(Notice(told, place))
            used[digest] = parsed
            entries.append(entry)
            line += parsed.lines
        text.close()
        self.known = used
        return found

    def _parse(self, piece: bytes) -> Parsed:
        root = compose(piece)
        if not isinstance(root, SequenceNode) or len(root.value) != 1:
            raise _NotSimple
        node = root.value[0]
        remarks: list[Remark] = []
        value = value_of(node, remarks)
        mark = node.start_mark
        place = Place(self._file, 0, mark.column + 1)
        entry = read_gap(value, order=0, place=place)
        return Parsed(entry, mark.line, mark.column, piece.count(b"\n"), tuple(remarks))


class _Text:
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

    def open_list(self) -> int:
        """Check what precedes the list, and return how many lines that are."""
        self._more()
        head = _LIST.search(self._data)
        if head is None:
            raise _NotSimple
        self.indentation = len(head[1])
        self._start = head.start(1)
        left = self.indentation - 1
        self._beyond = re.compile(rb"\n {0,%d}[^ \n#]" % left if left >= 0 else rb"\n[^ \n#]")
        own = head.start() + (self._data[head.start() : head.start() + 1] == b"\n")
        before = self._data[:own]
        if _HEADER_MARKERS.search(before):
            raise _NotSimple
        _check_surroundings(before)
        return self._data.count(b"\n", 0, self._start)

    def pieces(self) -> Iterator[bytes]:
        """Give the bytes of each entry, in whole lines; the last ones may hold more (`cut`)."""
        item = re.compile(rb"\n {%d}-(?=[ \t\n])" % self.indentation)
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
        lines = piece.count(b"\n", 0, len(piece) - 1)
        if piece.count(b"\n" + b" " * max(1, self.indentation)) == lines:
            return piece
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
            raise _NotSimple
        _check_surroundings(rest)

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
    """Give the chunks on; `_NotSimple` if there are other line breaks in them than newlines."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for chunk in chunks:
            if chunk:
                text = decoder.decode(chunk)
                if any(odd in text for odd in _ODD_BREAKS):
                    raise _NotSimple
                yield chunk
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _NotSimple from error


def _check_surroundings(data: bytes) -> None:
    """Raise `_NotSimple` unless the text is nothing, or keys at the left edge besides `gaps`."""
    root = compose_carefully(data)
    if root is None or (isinstance(root, ScalarNode) and not root.value and not root.style):
        return
    if not isinstance(root, MappingNode) or root.flow_style or root.start_mark.column:
        raise _NotSimple
    if any(not isinstance(key, ScalarNode) or key.value == GAPS for key, _ in root.value):
        raise _NotSimple
