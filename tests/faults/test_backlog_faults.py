"""Cases 50 to 53: a backlog that is torn, contradicts itself, is far too large, or means harm."""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chump_orchestrator.cli.client import ask
from tests.e2e.projects import gaps
from tests.faults.conftest import Begin
from tests.faults.rewired import start_rewired
from tests.faults.trials import BYSTANDER, Trial, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

OFFSETS = int(os.environ.get("FAULT_OFFSETS", "25"))
"""At so many places the backlog is torn."""

GAPS = int(os.environ.get("FAULT_GAPS", "10000"))
"""So many the large one has."""

WAIT = """\
while not os.path.exists(os.path.join(here, "go")):
    time.sleep(0.02)
ship()"""

IN_A_HURRY = """
from datetime import timedelta
from chump_orchestrator.daemon import keeper
keeper.GLANCE = timedelta(milliseconds=50)
keeper.TWICE_APART = timedelta(milliseconds=20)
keeper.STAYS = timedelta(seconds=4)
"""
"""The same program, looking more often, and believing sooner."""

WITHOUT_DOUBT = """
keeper.BacklogKeeper._vanished = lambda self, fresh: []
"""


def padding(number: int, more: str = "") -> str:
    """Return open gaps that no policy picks."""
    return "".join(
        f"- id: PAD-{n}\n  title: t{n}\n  priority: P4\n  effort: s\n  status: open\n{more}"
        for n in range(number)
    )


def backlog_of(trial: Trial) -> Path:
    return trial.root / "docs" / "gaps.yaml"


def loaded(trial: Trial) -> list[int]:
    """Return how many entries each backlog had that was taken over, in their order."""
    return [one["total"] for one in events(trial) if one["event"] == "backlog.loaded"]


def kept(trial: Trial) -> list[str]:
    """Return why backlogs were not taken over."""
    return [one["problem"] for one in events(trial) if one["event"] == "backlog.kept"]


def events(trial: Trial) -> list[dict[str, Any]]:
    lines = (line for line in trial.log().splitlines() if line.startswith("{"))
    return [json.loads(line) for line in lines if line.endswith("}")]


def status(trial: Trial) -> dict[str, Any]:
    told: dict[str, Any] = ask(trial.state / "control.sock", "status")["status"]
    return told


@contextmanager
def asked_all_the_while(trial: Trial) -> Iterator[None]:
    """Promise I5: status is answered within a second meanwhile, but for a hiccup of the machine."""
    took: list[float] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.wait(0.05):
            began = time.monotonic()
            status(trial)
            took.append(time.monotonic() - began)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        yield
    finally:
        stop.set()
        asking.join()
    took.sort()
    assert len(took) > 2
    assert took[-min(3, len(took))] < 1, took[-5:]
    assert took[-1] < 5, took[-5:]


# 50: torn, replaced, emptied, gone, half merged


def with_padding(begin: Begin) -> tuple[Trial, bytes]:
    """Return a trial with a daemon that has a backlog of 42 entries, and its text."""
    trial = begin("ANY-1", agent=WAIT)
    trial.write_backlog(gaps("ANY-1", BYSTANDER) + padding(40))
    return trial, backlog_of(trial).read_bytes()


def tear(trial: Trial, whole: bytes, offsets: list[int]) -> None:
    """Tear the backlog at each of these places, and make it whole again."""
    path = backlog_of(trial)
    for at in offsets:
        told, taken = len(kept(trial)), len(loaded(trial))
        path.write_bytes(whole[:at])
        wait_until(
            lambda told=told, taken=taken: (len(kept(trial)), len(loaded(trial))) != (told, taken)  # type: ignore[misc]
        )
        told, taken = len(kept(trial)), len(loaded(trial))
        path.write_bytes(whole)
        wait_until(lambda taken=taken: len(loaded(trial)) > taken)  # type: ignore[misc]


def places(whole: bytes, number: int) -> list[int]:
    """Return places to tear at; nothing could tell of the last entry whether it is whole."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    end = whole.rindex(b"- id:")
    return sorted(random.Random(seed).sample(range(end), number))


def never_fewer(trial: Trial, number: int) -> None:
    assert set(loaded(trial)) == {number}, loaded(trial)


def test_case_50_a_torn_backlog_is_not_taken_over(begin: Begin) -> None:
    """Behaviour B5; also when it is empty, gone or half merged. What stays so is believed."""
    trial, whole = with_padding(begin)
    path = backlog_of(trial)
    daemon = start_rewired(trial, IN_A_HURRY, "--once")
    wait_until(lambda: len(trial.starts()) == 2)

    tear(trial, whole, places(whole, OFFSETS))
    never_fewer(trial, 42)
    assert len(kept(trial)) >= OFFSETS

    def is_kept(word: str) -> None:
        wait_until(lambda: word in status(trial)["daemon"]["backlog_problem"])

    path.write_bytes(b"")
    is_kept("there is nothing in it")
    path.unlink()
    is_kept("cannot be read")
    path.write_bytes(
        whole.replace(b"- id: PAD-9\n", b"<<<<<<< HEAD\n- id: PAD-9\n=======\n>>>>>>> x\n")
    )
    is_kept("gaps.yaml:")
    never_fewer(trial, 42)
    fresh = path.with_suffix(".new")
    fresh.write_bytes(whole + b"- id: MORE-1\n  priority: P4\n")
    fresh.replace(path)
    wait_until(lambda: loaded(trial)[-1] == 43)
    path.write_bytes(whole[: whole.index(b"- id: PAD-30")])
    is_kept("open gaps have vanished")
    wait_until(lambda: loaded(trial)[-1] == 32)
    (trial.evidence / "go").touch()

    assert daemon.wait(60) == 0, trial.log()
    trial.check()
    assert set(trial.outcomes().values()) == {"shipped"}


def test_case_50_control_without_doubt_a_torn_backlog_is_taken_over(begin: Begin) -> None:
    trial, whole = with_padding(begin)
    daemon = start_rewired(trial, IN_A_HURRY + WITHOUT_DOUBT, "--once")
    wait_until(lambda: len(trial.starts()) == 2)

    tear(trial, whole, [whole.index(b"- id: PAD-7\n"), whole.index(b"- id: PAD-21\n")])
    (trial.evidence / "go").touch()
    daemon.wait(60)

    with pytest.raises(AssertionError):
        never_fewer(trial, 42)


# 51: contradictions

CONTRADICTORY = """\
- {id: TWICE-1, title: first, priority: P1, effort: s, status: open}
- {id: TWICE-1, title: second, priority: P1, effort: s, status: open}
- {id: BOTH-1, title: t, priority: P0, effort: s, status: open}
- {id: BOTH-1, title: t, priority: P0, effort: s, status: done}
- {id: SLUG_1, title: t, priority: P0, effort: s, status: open}
- {id: slug-1, title: t, priority: P0, effort: s, status: open}
- {id: ROUND-1, title: t, priority: P0, effort: s, status: open, depends_on: [ROUND-2]}
- {id: ROUND-2, title: t, priority: P0, effort: s, status: open, depends_on: [ROUND-3]}
- {id: ROUND-3, title: t, priority: P0, effort: s, status: open, depends_on: ROUND-1}
- {id: SELF-1, title: t, priority: P0, effort: s, status: open, depends_on: [SELF-1]}
- {id: LONELY-1, title: t, priority: P0, effort: s, status: open, depends_on: [NOWHERE-1]}
- {id: TYPES-1, title: [t], priority: P0, effort: s, status: open}
- {id: TYPES-2, title: t, priority: P0, effort: s, status: open, depends_on: {a: b}}
- {id: TYPES-3, title: t, priority: P0, effort: s, status: open, kind: 7}
- {id: TYPES-4, title: t, priority: {}, effort: [], status: open}
- {id: TYPES-5, title: t, priority: P0, effort: s, status: open, deadline: soon}
- [a, list]
- just text
- 7
- null
- {title: nameless, priority: P0, effort: s, status: open}
- {id: ENDED-1, title: t, priority: P0, effort: s, status: done, kind: wrong}
- {id: AFTER-1, title: t, priority: P0, effort: s, status: open, depends_on: [ENDED-1]}
- {id: LAST-1, title: t, priority: P1, effort: s, status: open, depends_on: [AFTER-1]}
"""

LEFT_OUT = (
    {"BOTH-1", "SLUG_1", "slug-1", "ROUND-1", "ROUND-2", "ROUND-3", "SELF-1", "ENDED-1"}
    | {f"TYPES-{number}" for number in range(1, 6)}
    | {""}
)


def test_case_51_entries_that_cannot_be_used_are_in_nobody_s_way(begin: Begin) -> None:
    """Behaviour B3: each is left out with its reason and place, and the others ship."""
    trial = begin()
    trial.write_backlog(CONTRADICTORY + gaps(BYSTANDER))

    trial.settle()
    plan = trial.json("plan")

    trial.check()
    ours = ("TWICE-1", "AFTER-1", "LAST-1", BYSTANDER)
    assert trial.outcomes() == dict.fromkeys(ours, "shipped")
    assert {one["id"] for one in plan["rejected"]} == LEFT_OUT
    assert all(one["reason"] and one["line"] > 1 for one in plan["rejected"])
    assert "NOWHERE-1" in trial.program("why", "LONELY-1").stdout


# 52: too much of it


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += (f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))
    return "\n".join(lines) + "\n"


def test_case_52_status_is_answered_whatever_is_read(begin: Begin) -> None:
    """A backlog of very many gaps, one that means to fill the memory, ones without a bottom."""
    trial, whole = with_padding(begin)
    path = backlog_of(trial)
    daemon = start_rewired(trial, IN_A_HURRY, "--once")
    wait_until(lambda: len(trial.starts()) == 2)

    note = f"  description: {'x' * 300}\n"
    deep = (
        "- id: DEEP-1\n  x: " + "[" * 50_000 + "]" * 50_000 + "\n",
        "- id: DEEP-1\n  x: " + "{a: " * 50_000 + "}" * 50_000 + "\n",
        "- id: DEEP-1\n" + "".join(" " * n + "a:\n" for n in range(2, 1500)),
    )
    with asked_all_the_while(trial):
        path.write_bytes(whole + padding(GAPS, note).replace("PAD-", "MANY-").encode())
        wait_until(lambda: loaded(trial)[-1] == GAPS + 42, 120)
        for text in (
            f"{bomb()}{whole.decode()}- {{id: BOMB-1, depends_on: *a29}}\n",
            *(whole.decode() + entry for entry in deep),
        ):
            told = len(kept(trial)), len(loaded(trial))
            path.write_text(text)
            wait_until(
                lambda told=told: (len(kept(trial)), len(loaded(trial))) != told,  # type: ignore[misc]
                120,
            )
    path.write_bytes(whole)
    (trial.evidence / "go").touch()

    assert daemon.wait(60) == 0, trial.log()[-2000:]
    assert any("aliases make it too large" in problem for problem in kept(trial))
    trial.check()
    assert set(trial.outcomes().values()) == {"shipped"}


# 53: entries that mean harm

CANARY = "pwned"

HARM = (
    f"$(touch {CANARY})",
    f"`touch {CANARY}`",
    f"A-1; touch {CANARY}",
    f"--upload-pack=touch {CANARY}",
    "-x-1",
    "../../../escaped-1",
    "/tmp/escaped-1",
    "A-1/../../B-1",
    "A-1.lock",
    "A-1\n",
    "A-1\x1b[2J",
    "A-1\u202e1-B",
    "A-1\x00",
    "A-\u0661",
    "\u0410-1",
    "A-1\r",
    "A-" + "9" * 63,
    "A-" + "9" * 100_000,
    "{gap}",
    "HEAD",
    "refs/heads/main",
    "@{-1}",
)

TITLES = {
    "SHELL-1": f"$(touch {CANARY}) `touch {CANARY}` ; touch {CANARY} | touch {CANARY} && false",
    "OPTION-1": f"--help -rf / --output={CANARY}",
    "ANSI-1": "\x1b[2J\x1b]0;owned\x07\x1b[31mred\x9b2J",
    "BIDI-1": "abc\u202edcba\u2066x\u2069\u200f end",
    "LINES-1": "one\n- {id: INJECTED-1, status: open}\r\n\x0b\x0c\u2028two\u2029three\x85four",
    "NUL-1": "before\x00after",
    "HUGE-1": "h" * 200_000,
    "BRACES-1": "{gap} {branch} %s %n {0} ${HOME} $HOME",
}

UNCLEAN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""What moves a terminal, or hides in a line."""


def hostile() -> str:
    entries: list[dict[str, object]] = [
        {"id": harm, "title": "t", "priority": "P0", "effort": "s", "status": "open"}
        for harm in HARM
    ]
    for gap, title in TITLES.items():
        more = {"description": title, "acceptance_criteria": [title]}
        entries.append(
            {"id": gap, "title": title, "priority": "P1", "effort": "s", "status": "open", **more}
        )
    # Texts of JSON are texts of YAML, escapes and all.
    return "".join(f"- {json.dumps(entry)}\n" for entry in entries)


def test_case_53_hostile_ids_and_titles(begin: Begin) -> None:
    """Ids are rejected, texts are data; nothing is run, made elsewhere, or shown as it is."""
    trial = begin(slots=3)
    trial.write_backlog(hostile() + gaps(BYSTANDER))
    around = set(trial.folder.parent.iterdir())
    outside = set(Path("/tmp").glob("escaped*"))

    trial.settle()
    shown: dict[tuple[str, ...], str] = {}
    for words in (
        *(("plan", "--explain"), ("backlog", "check"), ("history",), ("history", "--json")),
        *(("why", gap) for gap in ("ANSI-1", "LINES-1", HARM[10])),
        *(("logs", "BIDI-1"), ("status",)),
    ):
        run = trial.program(*words)
        shown[words] = run.stdout + run.stderr

    trial.check()
    assert trial.outcomes() == dict.fromkeys([*TITLES, BYSTANDER], "shipped")
    assert list(trial.folder.rglob(CANARY)) == []
    assert set(trial.folder.parent.iterdir()) == around
    assert set(Path("/tmp").glob("escaped*")) == outside
    assert len(trial.json("plan")["rejected"]) == len(HARM)
    unclean = {words: found[0] for words, text in shown.items() if (found := UNCLEAN.findall(text))}
    assert unclean == {}
    assert UNCLEAN.findall(trial.log()) == []
    names = trial.git("for-each-ref", "--format=%(refname:lstrip=2)", at=trial.origin).split()
    assert set(names) == {"main", *(f"claude/{gap.lower()}" for gap in (*TITLES, BYSTANDER))}


def test_case_53_control_the_look_for_unclean_text_finds_some(begin: Begin) -> None:
    for title in (TITLES["ANSI-1"], TITLES["BIDI-1"], TITLES["LINES-1"], TITLES["NUL-1"]):
        assert UNCLEAN.findall(title)
    assert not UNCLEAN.findall("plain text,\twith a tab\nand more: é…")


def test_case_53_a_nul_in_the_file_itself_is_told_with_its_place(begin: Begin) -> None:
    trial = begin()
    text = backlog_of(trial).read_bytes()
    backlog_of(trial).write_bytes(text + b"- {id: NUL-2, title: \x00, status: open}\n")

    refused = trial.program("run", "--once")
    backlog_of(trial).write_bytes(text)
    trial.settle()

    assert refused.returncode == 78
    assert "there is a NUL in it" in refused.stderr
    assert UNCLEAN.findall(refused.stderr) == []
    trial.check()
