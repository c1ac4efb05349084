"""The entries of one YAML text, each parsed once for as long as its bytes stay the same.

Most backlogs are a block list under `gaps:`. Such a text is cut at the dashes of that list, each
piece is parsed alone, and what came of it is kept under the digest of its bytes, so that one
changed entry costs one parse. Whatever is not provably that simple is parsed as a whole; all ways
give the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from chump_orchestrator.adapters.parsed import Found, Parsed, moved
from chump_orchestrator.adapters.yaml_edits import LONGEST, Seen
from chump_orchestrator.adapters.yaml_nodes import (
    Broken,
    Remark,
    compose,
    compose_carefully,
    value_of,
)
from chump_orchestrator.adapters.yaml_pieces import GAPS, NotSimple, Text, digest_of
from chump_orchestrator.adapters.yaml_plain import plain_entry
from chump_orchestrator.core.gap import Gap, Notice, Place, read_gap

Chunks = Callable[[], Iterable[bytes]]
"""Opens the text anew and gives it piece by piece."""

BREATH = 16
"""Entries after which somebody is asked whether to go on."""


class Entries:
    """Reads the entries of one file again and again; not to be used by two threads at once.

    `known` are its pieces, by digest, as they were read last, by this process or another one.
    """

    def __init__(self, file: str, known: dict[bytes, Parsed] | None = None) -> None:
        self._file = file
        self._seen: Seen | None = None
        self.known = known or {}

    def read(self, chunks: Chunks, pause: Callable[[], None], *, alone: bool = False) -> Found:
        """Return what the text holds; `Broken` when it is no backlog.

        `pause` is called every now and then; what it raises ends the reading. With `alone`, a
        mapping without `gaps` is one entry itself (behaviour B1).
        """
        try:
            return self._read_pieces(iter(chunks()), pause)
        except (NotSimple, Broken):
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

    def _read_pieces(self, chunks: Iterator[bytes], pause: Callable[[], None]) -> Found:
        seen, self._seen = self._seen, None
        whole = next(chunks, b"")
        if (more := next(chunks, None)) is not None:
            whole, chunks = b"", chain((whole, more), chunks)
        elif seen is not None:
            with suppress(NotSimple, Broken):
                return self._read_edited(seen, whole, pause)
        text = Text(chunks if more is not None else (whole,))
        line = text.open_list()
        starts: list[int] = []
        at = text.begins
        used: dict[bytes, Parsed] = {}
        found = Found()
        for piece in text.pieces():
            if not len(starts) % BREATH:
                pause()
            digest = digest_of(piece)
            parsed = used.get(digest) or self.known.get(digest)
            own = piece
            if parsed is None:
                own = text.cut(piece)
                digest = digest if own is piece else digest_of(own)
                parsed = self.known.get(digest) or self._parse(own, len(starts), line)
            used[digest] = parsed
            starts.append(at)
            at += len(own)
            self._add(found, parsed, line)
            line += parsed.lines
        text.close()
        self.known = used
        self._remember(whole, text.indentation, starts)
        return found

    def _read_edited(self, seen: Seen, data: bytes, pause: Callable[[], None]) -> Found:
        """Read a text of which another one is remembered; `NotSimple` for other edits than usual.

        The entries before and behind the edit are taken over as they are.
        """
        edit = seen.edited(data)
        if edit is None:
            raise NotSimple
        first, last, between = edit
        text = Text((between,))
        text.go_on(seen.indentation)
        starts, at = list(seen.starts[:first]), seen.starts[first]
        digests: list[bytes] = []
        fresh: list[Parsed] = []
        for piece in text.pieces():
            if not len(fresh) % BREATH:
                pause()
            if text.cut(piece) is not piece:
                raise NotSimple
            starts.append(at)
            at += len(piece)
            digests.append(digest_of(piece))
            fresh.append(self.known.get(digests[-1]) or self._parse(piece))
        before, behind = seen.parsed[:first], seen.parsed[last:]
        parsed = (*before, *fresh, *behind)
        digests = [*seen.digests[:first], *digests, *seen.digests[last:]]
        known = dict(zip(digests, parsed, strict=True))
        if len(known) != len(parsed):
            raise NotSimple
        line, stood = _line_of(seen.parsed[first]), _line_of(behind[0])
        found = Found()
        self._leave(found, before)
        for one in fresh:
            self._add(found, one, line)
            line += one.lines
        if line == stood and len(found.entries) == last:
            self._leave(found, behind)
        else:
            for one in behind:
                self._add(found, one, line)
                line += one.lines
        further = at - seen.starts[last]
        starts += (start + further for start in seen.starts[last:])
        self.known = known
        self._remember(data, seen.indentation, starts)
        return found

    def _remember(self, data: bytes, indentation: int, starts: Sequence[int]) -> None:
        """Remember a text that was read, if it is short, and no two of its entries are the same."""
        if data and len(data) <= LONGEST and len(starts) == len(self.known):
            digests, parsed = tuple(self.known), tuple(self.known.values())
            self._seen = Seen(data, indentation, starts, digests, parsed)

    def _add(self, found: Found, parsed: Parsed, line: int) -> None:
        """Add an entry to what is found, as it stands now: its piece begins at `line`, from 0."""
        order = len(found.entries)
        entry = parsed.entry
        at = line + parsed.line + 1
        if entry.place.line != at or (isinstance(entry, Gap) and entry.order != order):
            place = Place(self._file, at, parsed.column + 1)
            parsed.entry = entry = moved(entry, order, place)
        found.entries.append(entry)
        if parsed.remarks:
            self._remark(found, parsed, line)

    def _leave(self, found: Found, pieces: Sequence[Parsed]) -> None:
        """Add entries that stand where they stood."""
        found.entries += [one.entry for one in pieces]
        for one in pieces:
            if one.remarks:
                self._remark(found, one, _line_of(one))

    def _remark(self, found: Found, parsed: Parsed, line: int) -> None:
        for told, below, column in parsed.remarks:
            place = Place(self._file, line + below + 1, column + 1)
            found.notices.append(Notice(told, place))

    def _parse(self, piece: bytes, order: int = 0, line: int = 0) -> Parsed:
        """Parse an entry that is the one of that `order`, and whose piece begins at `line`."""
        remarks: list[Remark] = []
        below = 0
        value: object
        if (plain := plain_entry(piece)) is not None:
            value, column = plain
        else:
            root = compose(piece)
            if not isinstance(root, SequenceNode) or len(root.value) != 1:
                raise NotSimple
            node = root.value[0]
            below, column = node.start_mark.line, node.start_mark.column
            value = value_of(node, remarks)
        place = Place(self._file, line + below + 1, column + 1)
        entry = read_gap(value, order=order, place=place)
        return Parsed(entry, below, column, piece.count(b"\n"), tuple(remarks))


def _line_of(parsed: Parsed) -> int:
    """Return the line, from 0, in which the piece of an entry began that was read before."""
    return parsed.entry.place.line - parsed.line - 1
