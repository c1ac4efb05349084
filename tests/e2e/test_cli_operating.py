"""Commands around dispatches: status, history, logs, and those that change what happens."""

import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chump_orchestrator import config, wiring
from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.cli import act
from chump_orchestrator.cli.logs import Reader
from chump_orchestrator.cli.run import next_time
from chump_orchestrator.core.brakes import Fuse
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.errors import Refused
from chump_orchestrator.core.outcome import Exit, Outcome, OutcomeKind
from chump_orchestrator.core.records import DispatchState, Parked, Pause, Record, Settlement
from chump_orchestrator.core.testimony import Report, Usage
from chump_orchestrator.shim.logs import StreamLog
from tests.builders import NOW, a_dispatch, a_gap
from tests.e2e.cli_repository import Repository, ended, running

DISPATCH = {
    "id": "demo-1-x-1",
    "gap": "DEMO-1",
    "attempt": 1,
    "resumed_from": None,
    "state": "running",
    "backend": "claude",
    "model": None,
    "pid": 4711,
    "branch": "claude/demo-1",
    "worktree": "/somewhere/demo-1",
    "elapsed_s": 3700.0,
    "soft_deadline_s": 1200.0,
    "overdue": True,
    "silent_s": 12.0,
    "pull": {"number": 412, "state": "open", "checks": "failing"},
    "shipping": None,
    "cost_usd": 0.5,
    "tokens": 12,
    "turns": 3,
    "tool_calls": 2,
    "session": "0f4dfc29",
    "activity": "Bash",
    "activity_at": "2026-04-27T12:00:00Z",
    "trouble": None,
}


class Daemon:
    """Keeps what it was asked, and refuses to stop DEMO-9."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def _done(self, *asked: object) -> str:
        self.asked.append(asked)
        return f"done: {asked[0]}"

    async def status(self) -> Mapping[str, Any]:
        return {
            "daemon": {"pid": 7, "state": "draining", "since": "2026-04-27T12:00:00Z"},
            "slots": {"used": 1, "total": 2},
            "ready": 3,
            "dispatches": [DISPATCH],
        }

    async def stop(self, gap: str, *, now: bool) -> str:
        if gap == "DEMO-9":
            raise Refused("DEMO-9 has no dispatch under way")
        return self._done("stop", gap, now)

    async def drain(self) -> str:
        return self._done("drain")

    async def reload(self) -> str:
        return self._done("reload")

    async def pause(self, reason: str) -> str:
        return self._done("pause", reason)

    async def resume(self) -> str:
        return self._done("resume")

    async def retry(self, gap: str, *, resume: bool = False) -> str:
        return self._done("retry", gap, *(["resume"] if resume else []))

    async def release(self, gap: str) -> str:
        return self._done("release", gap)

    async def why(self, gap: str) -> str:
        return "the backend rests until noon" if gap == "DEMO-1" else "no slot, place 9"


def test_status_tells_what_the_daemon_says(repository: Repository) -> None:
    """Behaviour C6."""
    with repository.daemon(Daemon()):
        said, document = repository.say("status"), repository.say("status", "--json").json()

    assert said.code == 0
    assert document == {
        "schema_version": 1,
        "daemon": {"pid": 7, "state": "draining", "since": "2026-04-27T12:00:00Z"},
        "slots": {"used": 1, "total": 2},
        "ready": 3,
        "dispatches": [DISPATCH],
    }
    first, slots, _, _, row = said.out.splitlines()
    assert first == "draining, pid 7, since 2026-04-27T12:00:00Z"
    assert slots == "1 of 2 slots used, 3 gaps ready, 1 overdue"
    assert " ".join(row.split()) == (
        "DEMO-1 1 running claude 1h 01m late 20m 00s 12s #412 open, checks failing 4711 3 $0.50"
        " Bash"
    )


def test_status_of_a_daemon_of_another_version_leaves_out_what_it_does_not_tell(
    repository: Repository,
) -> None:
    class Older(Daemon):
        async def status(self) -> Mapping[str, Any]:
            told = await super().status()
            new = ("turns", "tool_calls", "session", "activity", "activity_at", "trouble")
            return {**told, "dispatches": [{k: v for k, v in DISPATCH.items() if k not in new}]}

    with repository.daemon(Older()):
        said = repository.say("status")

    assert said.out.splitlines()[-1].split()[-3:] == ["-", "$0.50", "-"]


def test_status_without_a_daemon_reads_the_ledger(repository: Repository) -> None:
    """Behaviour C7: daemon null, exit 3."""
    dispatch_id = repository.in_ledger(working)
    repository.in_ledger(lambda ledger: ledger.park(Parked("DEMO-4", "enough", "x", NOW)))

    with its_shim(repository, dispatch_id):
        said = repository.say("status", "--json")

    document = said.json()
    (dispatch,) = document["dispatches"]
    assert said.code == 3
    assert document["daemon"] is None
    assert document["slots"] == {"used": 1, "total": 2}
    assert document["parked"] == [
        {"gap": "DEMO-4", "reason": "enough", "since": "2026-04-27T12:00:00Z", "until": None}
    ]
    assert (document["settled"], document["pause"]) == ({}, None)
    assert dispatch.keys() == DISPATCH.keys() | {"last_line"}
    assert dispatch["state"] == "running"
    assert (dispatch["id"], dispatch["gap"], dispatch["pid"]) == ("demo-1-x-1", "DEMO-1", 4711)
    assert dispatch["overdue"] is True
    assert repository.say("status").code == 3


async def working(ledger: SqliteLedger) -> str:
    """Add a dispatch of DEMO-1 whose agent runs as far as the ledger knows; return its id."""
    dispatch = a_dispatch("demo-1-x-1", gap=a_gap("DEMO-1"))
    await ledger.add(dispatch)
    record = Record(dispatch, DispatchState.RUNNING, pid=4711, launched_at=NOW)
    await ledger.update(dispatch.id, record)
    return dispatch.id


@contextmanager
def its_shim(repository: Repository, dispatch: str) -> Iterator[Path]:
    """Hold what a shim holds for as long as it lives; give the folder of the dispatch."""
    folder = repository.state / "d" / dispatch
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.mark.parametrize("left", ["nothing", "a lock", "a record", "rubbish"])
def test_an_agent_that_ended_while_no_daemon_looked_is_not_shown_as_alive(
    repository: Repository, left: str
) -> None:
    dispatch = repository.in_ledger(working)
    if left != "nothing":
        with its_shim(repository, dispatch) as folder:
            text = '{"active_s": 59.0}' if left == "a record" else "["
            (folder / ("other.json" if left == "a lock" else "exit.json")).write_text(text)

    said = repository.say("status", "--json")

    (found,) = said.json()["dispatches"]
    assert (found["state"], found["pid"]) == ("exited", None)
    assert (found["elapsed_s"] == 59.0) is (left == "a record")
    assert found["overdue"] is (left != "a record")


def test_an_agent_that_has_ended_took_the_time_that_it_took(repository: Repository) -> None:
    """Behaviour C6: an ended agent is neither alive nor overdue since."""

    async def exited(ledger: SqliteLedger) -> None:
        dispatch = await working(ledger)
        (record,) = await ledger.records(active=True)
        exit_ = Exit(code=0, active=timedelta(seconds=59))
        await ledger.update(dispatch, replace(record, state=DispatchState.EXITED, exit=exit_))

    repository.in_ledger(exited)

    (found,) = repository.say("status", "--json").json()["dispatches"]

    assert (found["state"], found["pid"]) == ("exited", None)
    assert (found["elapsed_s"], found["overdue"]) == (59.0, False)


TYPO = "max_parallel = 'many'\n[state]\ndir = 'elsewhere'\n"


@pytest.mark.parametrize(
    ("arguments", "said_by_it"),
    [
        (("status",), "draining, pid 7"),
        (("stop", "DEMO-1"), "done: stop"),
        (("drain",), "done: drain"),
        (("pause",), "done: pause"),
        (("resume",), "done: resume"),
        (("retry", "DEMO-1"), "done: retry"),
        (("release", "DEMO-1"), "done: release"),
    ],
)
@pytest.mark.parametrize("text", [TYPO, TYPO + "[pick"])
def test_a_typo_in_the_settings_takes_no_command_away_from_a_daemon_that_runs(
    repository: Repository, arguments: tuple[str, ...], said_by_it: str, text: str
) -> None:
    """Behaviour C7: the daemon goes on with what it loaded, and can be told to end."""
    path = repository.write(".chump/orchestrator.toml", text)

    with repository.daemon(Daemon(), repository.root / "elsewhere"):
        said = repository.say(*arguments)
    without = repository.say(*arguments)

    assert (said.code, said.out.startswith(said_by_it)) == (0, True), said
    assert str(path) in said.err
    assert all(line.startswith("note: ") for line in said.err.splitlines())
    assert (without.code, without.out) == (78, "")
    assert str(path) in without.err


def test_a_reload_of_settings_with_a_typo_fails_with_what_the_daemon_says(
    repository: Repository,
) -> None:
    class Strict(Daemon):
        async def reload(self) -> str:
            raise Refused("a.toml:1: max_parallel: wrong")

    repository.write(".chump/orchestrator.toml", TYPO)

    with repository.daemon(Strict(), repository.root / "elsewhere"):
        said = repository.say("reload")

    assert (said.code, said.out) == (1, "")
    assert said.err == "chump-orchestrator: a.toml:1: max_parallel: wrong\n"


def test_logs_are_shown_whatever_is_wrong_with_the_settings(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatch = repository.in_ledger(ended)
    log_of(repository, dispatch, monkeypatch)
    StreamLog("stdout", 1000, 4000).append(b"only this\n")
    repository.write(".chump/orchestrator.toml", "max_parallel = 'many'")

    said = repository.say("logs", "DEMO-1", "--stream", "stdout")

    assert (said.code, said.out) == (0, "only this\n")
    assert "max_parallel" in said.err


def test_status_survives_a_backlog_that_cannot_be_read(repository: Repository) -> None:
    (repository.root / "docs/gaps.yaml").unlink()

    said = repository.say("status", "--json")

    assert (said.code, said.json()["ready"]) == (3, None)
    assert "cannot be read" in said.err


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (("stop", "DEMO-1"), ("stop", "DEMO-1", False)),
        (("stop", "DEMO-1", "--now"), ("stop", "DEMO-1", True)),
        (("drain",), ("drain",)),
        (("reload",), ("reload",)),
        (("pause",), ("pause", "")),
        (("pause", "at lunch"), ("pause", "at lunch")),
        (("resume",), ("resume",)),
        (("retry", "DEMO-1"), ("retry", "DEMO-1")),
        (("retry", "DEMO-1", "--resume"), ("retry", "DEMO-1", "resume")),
        (("release", "DEMO-1"), ("release", "DEMO-1")),
    ],
)
def test_a_daemon_that_runs_is_asked(
    repository: Repository, arguments: tuple[str, ...], asked: tuple[object, ...]
) -> None:
    daemon = Daemon()
    with repository.daemon(daemon):
        said = repository.say(*arguments)

    assert (said.code, said.out) == (0, f"done: {arguments[0]}\n")
    assert daemon.asked == [asked]
    assert not (repository.state / "ledger.db").exists()


def test_what_the_daemon_refuses_fails(repository: Repository) -> None:
    with repository.daemon(Daemon()):
        said = repository.say("stop", "DEMO-9")

    assert (said.code, said.out) == (1, "")
    assert said.err == "chump-orchestrator: DEMO-9 has no dispatch under way\n"


def test_why_adds_what_only_the_daemon_knows(repository: Repository) -> None:
    with repository.daemon(Daemon()):
        one, other = repository.say("why", "DEMO-1"), repository.say("why", "DEMO-5")

    assert one.out == "DEMO-1: the backend rests until noon\n"
    assert other.out == "DEMO-5: no slot, place 3\n"


@pytest.mark.parametrize("arguments", [("stop", "DEMO-1"), ("drain",), ("reload",)])
def test_some_commands_need_a_daemon(repository: Repository, arguments: tuple[str, ...]) -> None:
    """Behaviour C7."""
    said = repository.say(*arguments)

    assert (said.code, said.out) == (4, "")
    assert "no daemon runs" in said.err


@pytest.mark.parametrize("command", ["stop", "retry", "release", "logs"])
def test_what_is_no_gap_id_is_a_slip_of_the_pen(repository: Repository, command: str) -> None:
    said = repository.say(command, "../etc")

    assert said.code == 2
    assert "is no gap id" in said.err


def test_a_pause_without_a_daemon_lasts_until_resumed(repository: Repository) -> None:
    """Behaviour C7."""
    paused = repository.say("pause", "at lunch")
    found: Pause = repository.in_ledger(lambda ledger: ledger.pause())
    status = repository.say("status")
    resumed = repository.say("resume")
    after = repository.in_ledger(lambda ledger: ledger.pause())

    assert (paused.code, resumed.code, after) == (0, 0, None)
    assert (found.by, found.reason) == ("operator", "at lunch")
    assert "paused by operator" in status.out
    assert resumed.out == "resumed\n"
    assert repository.say("resume").out == "dispatching was not paused\n"


def test_resume_lifts_the_fuse_too(repository: Repository) -> None:
    """Behaviour X5."""
    blown = Fuse(cause=Cause.NETWORK, blown_until=NOW, wait=timedelta(minutes=15))
    repository.in_ledger(lambda ledger: ledger.set_fuse(blown))

    said = repository.say("resume")

    assert said.out == "resumed\n"
    assert repository.in_ledger(lambda ledger: ledger.fuse()) == Fuse()


def test_release_without_a_daemon_frees_a_parked_gap(repository: Repository) -> None:
    """Behaviour X2."""
    repository.in_ledger(lambda ledger: ledger.park(Parked("DEMO-1", "enough", "x", NOW)))

    said = repository.say("release", "DEMO-1")

    assert (said.code, said.out) == (0, "DEMO-1 is released\n")
    assert repository.in_ledger(lambda ledger: ledger.parked()) == ()
    assert repository.say("release", "DEMO-1").out == "DEMO-1 was not parked\n"
    assert repository.say("release", "DEMO-99").code == 1


def test_retry_without_a_daemon_leaves_a_wish_and_frees_the_gap(repository: Repository) -> None:
    """Behaviour X2: parked ones, and shipped ones too."""
    repository.in_ledger(lambda ledger: ended(ledger, "DEMO-1", Outcome(OutcomeKind.SHIPPED)))

    said = repository.say("retry", "DEMO-1")

    assert said.code == 0
    assert repository.in_ledger(lambda ledger: ledger.requested()) == ("DEMO-1",)
    assert repository.in_ledger(lambda ledger: ledger.shipped()) == {}


def test_retry_of_what_runs_or_is_nowhere_is_refused(repository: Repository) -> None:
    repository.in_ledger(lambda ledger: running(ledger, "DEMO-1"))

    runs, nowhere = repository.say("retry", "DEMO-1"), repository.say("retry", "DEMO-99")

    assert (runs.code, nowhere.code) == (1, 1)
    assert "active dispatch" in runs.err
    assert "no entry DEMO-99" in nowhere.err
    assert repository.in_ledger(lambda ledger: ledger.requested()) == ()


def test_a_daemon_that_is_just_starting_is_waited_for(repository: Repository) -> None:
    """Behaviour C7: whoever holds the lock writes, nobody else."""
    daemon, may_go = Daemon(), threading.Event()

    def come_up() -> None:
        time.sleep(0.5)
        with repository.daemon(daemon):
            may_go.wait(60)

    late = threading.Thread(target=come_up)
    with wiring.daemon_lock(repository.root, config.load(repository.root)):
        late.start()
        said = repository.say("pause", "soon")
        may_go.set()
        late.join()

    assert said.out == "done: pause\n"
    assert daemon.asked == [("pause", "soon")]


def test_a_lock_without_a_daemon_behind_it_is_busy_in_the_end(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviour C3: another instance is exit 75."""
    monkeypatch.setattr(act, "STARTING_S", 0.1)
    with wiring.daemon_lock(repository.root, config.load(repository.root)):
        said = repository.say("pause")

    assert (said.code, said.out) == (75, "")
    assert str(os.getpid()) in said.err


def test_history_has_the_shape_that_others_read(repository: Repository) -> None:
    """Behaviour C6: newest first."""
    repository.in_ledger(lambda ledger: ended(ledger, "DEMO-4"))
    why = Outcome(OutcomeKind.KILLED, "exit code 7", Cause.EXIT_CODE)
    repository.in_ledger(lambda ledger: ended(ledger, "DEMO-1", why))
    repository.in_ledger(lambda ledger: running(ledger, "DEMO-5"))

    document = repository.say("history", "--json").json()

    assert [one["gap"] for one in document["dispatches"]] == ["DEMO-1", "DEMO-4"]
    assert document["schema_version"] == 1
    assert document["dispatches"][0] == {
        "id": "demo-1-x-1",
        "gap": "DEMO-1",
        "attempt": 1,
        "resumed_from": None,
        "outcome": "killed",
        "cause": "exit-code",
        "reason": "exit code 7",
        "duration_s": 60.0,
        "active_s": 59.0,
        "pull": None,
        "branch": "claude/demo-1",
        "worktree": None,
        "backend": "claude",
        "model": None,
        "provider_pfx": None,
        "cost_usd": None,
        "tokens": None,
        "turns": None,
        "tool_calls": None,
        "session": None,
        "activity": None,
        "activity_at": None,
        "trouble": None,
        "answer": None,
        "parallel_siblings": 0,
        "started_at": "2026-04-27T12:00:00Z",
        "ended_at": "2026-04-27T12:01:00Z",
        "corrected_at": None,
        "corrected_from": None,
    }


def test_history_tells_what_an_agent_told_of_itself(repository: Repository) -> None:
    report = Report(
        session="0f4dfc29",
        usage=Usage(0.125, 2048, 7),
        tool_calls=3,
        activity="failed",
        active_at=NOW,
        answer="I could not",
        failure="API Error: 529\nOverloaded",
        is_stream=True,
    )

    async def told(ledger: SqliteLedger) -> None:
        dispatch = await running(ledger, "DEMO-1")
        outcome = Outcome(OutcomeKind.KILLED, "exit code 1", Cause.RATE_LIMITED)
        end = Settlement(outcome, NOW, None, None, False, 0, 0.125, 2048, report=report)
        await ledger.settle(dispatch, end)

    repository.in_ledger(told)

    (row,) = repository.say("history", "--json").json()["dispatches"]
    table = repository.say("history").out.splitlines()

    expected = {
        "cost_usd": 0.125,
        "tokens": 2048,
        "turns": 7,
        "tool_calls": 3,
        "session": "0f4dfc29",
        "activity": "failed",
        "activity_at": "2026-04-27T12:00:00Z",
        "trouble": "API Error: 529\nOverloaded",
        "answer": "I could not",
    }
    assert {key: row[key] for key in expected} == expected
    assert " $0.12 " in table[1]
    assert table[1].endswith("exit code 1: API Error: 529 Overloaded")


def test_history_may_be_of_one_gap_and_short(repository: Repository) -> None:
    async def three(ledger: Any) -> None:
        for attempt in (1, 2, 3):
            await ended(ledger, "DEMO-1", attempt=attempt)
        await ended(ledger, "DEMO-4")

    repository.in_ledger(three)

    of_gap = repository.say("history", "--gap", "DEMO-1", "--json").json()["dispatches"]
    short = repository.say("history", "--limit", "2", "--json").json()["dispatches"]
    table = repository.say("history", "--limit", "1").out.splitlines()

    assert [one["attempt"] for one in of_gap] == [3, 2, 1]
    assert [one["gap"] for one in short] == ["DEMO-4", "DEMO-1"]
    assert table[1].split()[:3] == ["DEMO-4", "1", "killed"]


def test_history_goes_by_the_end_and_not_by_the_beginning(repository: Repository) -> None:
    """Behaviour C6: newest first; a request may be merged long after others have ended."""

    async def three(ledger: SqliteLedger) -> None:
        for number, minutes in ((1, 90), (4, 5), (5, 7)):
            await ended(ledger, f"DEMO-{number}", after=timedelta(minutes=minutes))

    repository.in_ledger(three)

    whole = repository.say("history", "--json").json()["dispatches"]
    short = repository.say("history", "--limit", "1", "--json").json()["dispatches"]

    assert [one["gap"] for one in whole] == ["DEMO-1", "DEMO-5", "DEMO-4"]
    assert [one["gap"] for one in short] == ["DEMO-1"]


def test_an_empty_history_says_why_it_is(repository: Repository) -> None:
    before = repository.say("history")
    repository.in_ledger(lambda ledger: running(ledger, "DEMO-1"))
    meanwhile = repository.say("history")
    of_it = repository.say("history", "--gap", "DEMO-1")
    repository.in_ledger(lambda ledger: ended(ledger, "DEMO-4"))
    of_another = repository.say("history", "--gap", "DEMO-5")

    assert before.err == "nothing has been dispatched here yet\n"
    assert meanwhile.err == "no dispatch has ended here yet; 1 under way, see status\n"
    assert of_it.err == "no dispatch of DEMO-1 has ended here yet; 1 under way, see status\n"
    assert of_another.err == "DEMO-5 has not been dispatched here\n"


def log_of(repository: Repository, dispatch: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = repository.state / "d" / dispatch
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_logs_are_read_over_all_segments_and_say_what_is_missing(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviour T1."""
    dispatch = repository.in_ledger(ended)
    log_of(repository, dispatch, monkeypatch)
    StreamLog("stdout", 1000, 4000).append(b"only this\n")
    err = StreamLog("stderr", 100, 400)
    lines = [b"%09d\n" % number for number in range(100)]
    for line in lines:
        err.append(line)

    both = repository.say("logs", "DEMO-1")
    one = repository.say("logs", "DEMO-1", "--stream", "stderr")

    kept = b"".join(lines[:10] + lines[60:]).decode()
    assert one.out == kept
    assert one.err == "[500 bytes of stderr are not kept]\n"
    assert both.out == f"==> stdout <==\nonly this\n==> stderr <==\n{kept}"


def test_the_logs_of_an_earlier_attempt_may_be_asked_for(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt in (1, 2):
        dispatch = repository.in_ledger(partial(ended, attempt=attempt))
        log_of(repository, dispatch, monkeypatch)
        StreamLog("stdout", 1000, 4000).append(b"attempt %d\n" % attempt)

    newest = repository.say("logs", "DEMO-1", "--stream", "stdout")
    first = repository.say("logs", "DEMO-1", "--stream", "stdout", "--attempt", "1")

    assert (newest.out, first.out) == ("attempt 2\n", "attempt 1\n")
    assert repository.say("logs", "DEMO-1", "--attempt", "3").code == 1
    assert repository.say("logs", "DEMO-4").code == 1


def test_logs_that_were_tidied_away_are_said_to_be(repository: Repository) -> None:
    repository.in_ledger(ended)

    said = repository.say("logs", "DEMO-1")

    assert (said.code, said.out) == (1, "")
    assert "gone" in said.err


@pytest.mark.parametrize("by", ["exit.json", "the ledger"])
def test_following_ends_when_the_dispatch_has(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Behaviour C1: `logs -f`."""
    dispatch = repository.in_ledger(running)
    folder = log_of(repository, dispatch, monkeypatch)
    log = StreamLog("stdout", 1000, 4000)
    log.append(b"begun\n")

    with repository.start("logs", "DEMO-1", "-f", stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        heard = [following.stdout.readline(), following.stdout.readline()]
        log.append(b"more\n")
        heard.append(following.stdout.readline())
        log.append(b"the end\n")
        if by == "exit.json":
            (folder / "exit.json").write_text("{}")
        else:
            repository.in_ledger(lambda ledger: ledger.abort(dispatch, "gone", NOW))
        heard.append(following.stdout.read())
        code = following.wait(60)

    assert heard == ["==> stdout <==\n", "begun\n", "more\n", "the end\n"]
    assert code == 0


def test_a_reader_that_fell_behind_goes_on_with_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log, reader = StreamLog("stdout", 10, 40), Reader(tmp_path, "stdout")
    log.append(b"0123456789abc")

    first = b"".join(reader.chunks())
    log.append(b"x" * 100)
    rest = b"".join(reader.chunks())

    assert first == b"0123456789abc"
    assert set(rest) == {ord("x")}
    assert reader.missing + len(rest) == 100
    assert list(reader.chunks()) == []


@pytest.mark.parametrize(
    ("now", "text", "hours"),
    [("10:00", "11:30", 1.5), ("10:00", "09:00", 23.0), ("10:00", "10:00", 24.0)],
)
def test_until_is_the_next_such_time_of_the_local_day(
    monkeypatch: pytest.MonkeyPatch, now: str, text: str, hours: float
) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        hour, minute = map(int, now.split(":"))
        at = datetime(2026, 4, 27, hour, minute).astimezone(UTC)
        assert next_time(text, at) - at == timedelta(hours=hours)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_interrupted_command_says_no_more_and_exits_130(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviour C3."""
    dispatch = repository.in_ledger(running)
    log_of(repository, dispatch, monkeypatch)
    StreamLog("stdout", 1000, 4000).append(b"begun\n")

    with repository.start(
        "logs", "DEMO-1", "-f", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as following:
        assert following.stdout is not None
        following.stdout.readline()
        following.send_signal(signal.SIGINT)
        _, err = following.communicate(timeout=60)

    assert (following.returncode, err.strip()) == (130, "")


def test_a_terminal_is_shown_text_without_escape_sequences(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatch = repository.in_ledger(ended)
    log_of(repository, dispatch, monkeypatch)
    StreamLog("stdout", 1000, 4000).append("\x1b]0;title\x07\x1b[31mred\x1b[0m \u2713\r\n".encode())
    ours, theirs = os.openpty()

    with repository.start("logs", "DEMO-1", "--stream", "stdout", stdout=theirs) as printing:
        printing.wait(60)
    os.close(theirs)
    shown = os.read(ours, 4096)
    os.close(ours)

    assert shown == "red \u2713\r\n".encode()


def test_a_table_on_a_terminal_has_the_same_words(repository: Repository) -> None:
    ours, theirs = os.openpty()

    with repository.start("plan", stdout=theirs, stderr=subprocess.DEVNULL) as printing:
        printing.wait(60)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)

    assert "DEMO-1" in shown
    assert "claude/demo-1" in shown
