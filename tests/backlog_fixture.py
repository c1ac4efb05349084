"""A backlog of the size and the shape of a real one (behaviour B4), made anew from a seed."""

from __future__ import annotations

import random

ENTRIES = 543
"""What a real backlog has: 113 of them open, 423 done, 7 neither."""

OPEN = 113
DONE = 423
XS = 98
NULL_DEPENDENCIES = 145
CLOSED_AS_TEXT = 343

FAMOUS = (
    "EVAL-031",
    "COG-009b",
    "COMP-005a-fe",
    "INFRA-AB-TOOL-CALL-COUNTER",
    "INFRA-CLIPPY-RUST195",
)
"""Ids with the forms that have been misread before (behaviour D8)."""

DOMAINS = ("INFRA", "COG", "EVAL", "COMP", "QUALITY", "PRODUCT", "RESEARCH", "DOC")
PRIORITIES = ("P0", "P1", "P1", "P2", "P2", "P2", "P3", "P4")
EFFORTS = ("s", "s", "m", "m", "m", "l", "xl")

WORDS = (  # noqa: SIM905 - a line for each would hide the whole
    "agent backlog binary brief branch cargo channel check clock command commit crate deadline"
    " dispatch event file fixture flag gap harness index journal lease ledger lesson log merge"
    " model note panel path picker probe process prompt queue reflection request retry row rule"
    " runner scheduler schema script session settings shim signal slot status step store table"
    " tail target task test thread timer token trace tree turn verdict worker worktree writer"
    " the a of to and with without before after under over from into per each every same other"
    " must should does not only when while until because although is are was were reads writes"
).split()


def backlog(entries: int = ENTRIES, *, seed: int = 7, twice: bool = False) -> str:
    """Return the text of a `gaps.yaml`; 543 entries make about 930 kB.

    With `twice` a handful of ids and of keys stand in it a second time, as in older versions.
    """
    made = _Maker(random.Random(seed), entries)
    texts = [made.entry(number) for number in range(entries)]
    if twice:
        texts[5] = texts[5].replace("  effort:", "  effort: l\n    effort:", 1)
        texts[9] += "    priority: P2\n"
        texts += [texts[20], texts[33]]
    return made.header() + "gaps:\n" + "".join(texts) + "domains:\n  - infra\n  - cog\n"


class _Maker:
    def __init__(self, chance: random.Random, entries: int) -> None:
        self._chance = chance
        self._entries = entries
        self.ids = [self._id(number) for number in range(entries)]
        states = ("deferred", "blocked", "")
        self._status = self._shared(entries, {"open": OPEN, "done": DONE}, states)
        self._effort = self._shared(entries, {"xs": XS, "": 3}, EFFORTS)
        self._priority = self._shared(entries, {"": 3}, PRIORITIES)
        self._depends = self._shared(entries, {"null": NULL_DEPENDENCIES}, ("list",))
        closed = self._status.count("done")
        self._closed = self._shared(closed, {"text": CLOSED_AS_TEXT}, ("date",), of=DONE)

    def header(self) -> str:
        prose = "".join(f"  # {self._prose(12)}\n" for _ in range(20))
        return (
            f"# The work that is to be done.\nmeta:\n  version: '1'\n{prose}  owner: platform\n\n"
        )

    def entry(self, number: int) -> str:
        status = self._status[number]
        fields = [f"id: {self.ids[number]}", f"title: {self._title()}"]
        fields += [f"domain: {self.ids[number].partition('-')[0].lower()}"]
        given = {
            "priority": self._priority[number],
            "effort": self._effort[number],
            "status": status,
        }
        fields += [f"{name}: {word}" for name, word in given.items() if word]
        fields.append(self._depends_on(number))
        fields.append("description: |\n" + self._block(self._chance.randint(9, 15)))
        criteria = (f"      - {self._title()}" for _ in range(self._chance.randint(2, 6)))
        fields.append("acceptance_criteria:\n" + "\n".join(criteria))
        if status == "done":
            day = f"2026-0{self._chance.randint(1, 4)}-{self._chance.randint(10, 28)}"
            as_text = self._closed.pop() == "text"
            fields.append(f"closed_date: '{day}'" if as_text else f"closed_date: {day}")
            fields.append(f"closed_pr: {self._chance.randint(1, 900)}")
        fields.append(f"source_doc: docs/{self._chance.choice(WORDS)}.md")
        return "  - " + "\n    ".join(fields) + "\n"

    def _id(self, number: int) -> str:
        if number < len(FAMOUS):
            return FAMOUS[number]
        return f"{DOMAINS[number % len(DOMAINS)]}-{number + 100}"

    def _shared(
        self, total: int, counts: dict[str, int], rest: tuple[str, ...], of: int = ENTRIES
    ) -> list[str]:
        """Return `total` values in the proportions of the real backlog, shuffled."""
        values = [value for value, count in counts.items() for _ in range(total * count // of)]
        values += [rest[n % len(rest)] for n in range(total - len(values))]
        self._chance.shuffle(values)
        return values

    def _depends_on(self, number: int) -> str:
        if self._depends[number] == "null":
            return "depends_on: null"
        if number == 0 or self._chance.random() < 0.5:
            return "depends_on: []"
        earlier = self._chance.sample(range(number), min(number, self._chance.randint(1, 3)))
        if self._chance.random() < 0.5:
            return f"depends_on: [{', '.join(self.ids[one] for one in earlier)}]"
        return "depends_on:\n" + "\n".join(f"      - {self.ids[one]}" for one in earlier)

    def _title(self) -> str:
        text = self._prose(self._chance.randint(6, 14))
        return f'"{text}: {self._prose(3)}"' if self._chance.random() < 0.3 else text

    def _block(self, lines: int) -> str:
        return "\n".join(f"      {self._prose(self._chance.randint(11, 17))}" for _ in range(lines))

    def _prose(self, words: int) -> str:
        return " ".join(self._chance.choices(WORDS, k=words))
