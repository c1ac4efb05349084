"""Launching agents on this machine: what they are given, what is refused, what stays private."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import anyio
import psutil
import pytest

from chump_orchestrator.core.dispatch import Command
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.outcome import Exit
from tests.adapters.launches import SEEN, Bench, ignore, python
from tests.adapters.shims import marked
from tests.builders import a_dispatch

SECRET = "s3cr3t-of-the-backend"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.clean()


async def test_an_agent_is_launched_followed_and_its_end_told(bench: Bench) -> None:
    lines: list[str] = []
    script = "import sys; print('brief:', sys.stdin.read()); print('ERROR: no', file=sys.stderr)"

    agent, _ = await bench.launch(python(script + "; sys.exit(7)"), prompt="fix it, bäldig")
    ended = await agent.follow(lines.append)

    assert ended == replace(
        Exit(code=7), active=ended.active, peak_rss_bytes=ended.peak_rss_bytes, cpu=ended.cpu
    )
    assert ended is agent.exit
    assert lines == ["brief: fix it, bäldig"]
    assert agent.tail() == ("ERROR: no",)
    assert agent.last_words() == "brief: fix it, bäldig\n\nERROR: no\n"
    assert agent.active() == ended.active > timedelta(0)
    assert ended.peak_rss_bytes > 1_000_000
    assert agent.ended_at is not None
    assert agent.ended_at.utcoffset() == timedelta(0)


async def test_an_agent_gets_the_allowed_environment_and_ours_over_it_and_nothing_else(
    bench: Bench,
) -> None:
    """Behaviour D5."""
    seen = {**SEEN, "CHUMP_DISPATCH_DEPTH": "0", "TMPDIR": "/tmp", "GIT_AUTHOR_NAME": "me"}
    executor = bench.executor(seen, overlay={"GIT_AUTHOR_NAME": "Chump", "MODEL": "small"})
    command = python(
        "import os, json; print(json.dumps(dict(os.environ)))",
        env={"MODEL": "large", "CHUMP_SESSION_ID": "forged"},
        pass_env=("CLAUDE_*",),
    )
    lines: list[str] = []

    agent, dispatch_id = await bench.launch(command, executor=executor)
    await agent.follow(lines.append)

    told = json.loads(lines[0])
    told.pop("LC_CTYPE", None)  # set by the agent's Python itself
    assert told == {
        **SEEN,
        "GIT_AUTHOR_NAME": "Chump",
        "MODEL": "large",
        "CHUMP_DISPATCH_DEPTH": "1",
        "CHUMP_DISPATCH_ID": dispatch_id,
        "CHUMP_SESSION_ID": dispatch_id,
        "TMPDIR": str(bench.folder(dispatch_id) / "tmp"),
    }
    assert ("CLAUDE_*",) in bench.asked
    assert Path(told["TMPDIR"]).is_dir()


async def test_a_provider_s_key_is_taken_from_its_own_variable_or_from_nowhere(
    bench: Bench,
) -> None:
    """Behaviour A2."""
    seen = {**SEEN, "OPENAI_API_KEY": "others", "OPENAI_API_BASE": "theirs", "ACME_KEY": "ours"}
    command = python(
        "import os; print(*(os.environ.get('OPENAI_API_' + n) for n in ('KEY', 'BASE')))",
        env_from={"OPENAI_API_KEY": "ACME_KEY", "OPENAI_API_BASE": "ACME_BASE"},
    )
    lines: list[str] = []

    agent, _ = await bench.launch(command, executor=bench.executor(seen))
    await agent.follow(lines.append)

    assert lines == ["ours None"]


async def test_a_secret_reaches_the_agent_but_no_file(bench: Bench) -> None:
    """Promise I7."""
    executor = bench.executor({**SEEN, "API_KEY": SECRET}, secrets=("API_KEY",))
    script = "import os; key = os.environ['API_KEY']; print(len(key), key)"
    lines: list[str] = []

    agent, dispatch_id = await bench.launch(python(script), executor=executor)
    await agent.follow(lines.append)

    files = [path for path in bench.folder(dispatch_id).rglob("*") if path.is_file()]
    assert lines == [f"{len(SECRET)} [redacted]"]
    assert (
        "API_KEY"
        in json.loads((bench.folder(dispatch_id) / "spec.json").read_text())["environment"]
    )
    assert not [path.name for path in files if SECRET.encode() in path.read_bytes()]


async def test_nobody_else_may_look_into_a_dispatch(bench: Bench) -> None:
    agent, dispatch_id = await bench.launch(python("pass"))
    await agent.follow(ignore)

    folder = bench.folder(dispatch_id)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes.pop("tmp") == 0o700
    assert {"spec.json", "prompt.txt", "exit.json", "shim.log"} <= modes.keys()
    assert set(modes.values()) == {0o600}


async def test_the_order_says_what_recovery_needs(bench: Bench) -> None:
    agent, dispatch_id = await bench.launch(python("pass"))
    await agent.follow(ignore)

    spec = json.loads((bench.folder(dispatch_id) / "spec.json").read_text())
    assert (spec["dispatch"], spec["gap"], spec["attempt"]) == (dispatch_id, "INFRA-1", 1)
    assert (spec["branch"], spec["base"]) == (bench.workspace.branch, bench.workspace.base)
    assert (spec["cwd"], spec["hard_s"], spec["grace_s"]) == (str(bench.worktree), 120.0, 5.0)
    assert spec["created_at"] == "2026-04-27T12:00:00+00:00"
    assert spec["record"]["gap"]["title"] == "a title"
    assert spec["record"]["deadlines"]["soft"] == 60.0


async def test_placeholders_are_filled_in_once_and_only_on_demand(bench: Bench) -> None:
    command = python(
        "import sys; print(sys.argv[1:])", "{worktree}:{branch}", "{prompt_file}", "{x}"
    )
    lines: list[str] = []

    verbatim, _ = await bench.launch(command)
    await verbatim.follow(lines.append)
    filled, dispatch_id = await bench.launch(replace(command, expand=True))
    await filled.follow(lines.append)

    prompt_file = bench.folder(dispatch_id) / "prompt.txt"
    assert lines == [
        "['{worktree}:{branch}', '{prompt_file}', '{x}']",
        f"['{bench.worktree}:claude/infra-1', '{prompt_file}', '{{x}}']",
    ]


async def test_the_session_is_filled_in_where_an_argument_is_nothing_else(bench: Bench) -> None:
    command = python("import sys; print(sys.argv[1:])", "--session", "{session}", "x{session}")
    lines: list[str] = []

    for expand in (False, True):
        agent, dispatch_id = await bench.launch(replace(command, expand=expand))
        await agent.follow(lines.append)

        session = a_dispatch(dispatch_id).session
        assert lines.pop() == f"['--session', '{session}', 'x{{session}}']"


async def test_a_brief_may_be_led_up_to(bench: Bench) -> None:
    lines: list[str] = []
    script = "import sys; print(repr(sys.stdin.read()))"

    agent, _ = await bench.launch(python(script, brief_prefix="Do this:\n\n"), prompt="/init")
    await agent.follow(lines.append)

    assert lines == ["'Do this:\\n\\n/init'"]


async def test_lines_may_be_as_long_as_whoever_follows_wants(bench: Bench) -> None:
    lines: list[str] = []
    script = "print('a' * 500_000); print('b' * 500_001)"

    agent, _ = await bench.launch(python(script))
    await agent.follow(lines.append, longest_line=500_000)

    assert lines == ["a" * 500_000, "b" * 500_000]


async def test_without_a_brief_on_its_input_an_agent_reads_nothing(bench: Bench) -> None:
    lines: list[str] = []

    agent, _ = await bench.launch(
        python("import sys; print(repr(sys.stdin.read()))", brief_on_stdin=False)
    )
    await agent.follow(lines.append)

    assert lines == ["''"]


async def test_the_first_program_that_can_be_executed_counts(bench: Bench) -> None:
    """Behaviour A4."""
    (bench.worktree / "bin").mkdir()
    (bench.worktree / "bin/agent").write_text("#!/bin/sh\necho from the worktree\n")
    (bench.worktree / "bin/agent").chmod(0o755)
    (bench.worktree / "plain").write_text("#!/bin/sh\n")
    lines: list[str] = []

    agent, _ = await bench.launch(Command(("no-such-agent", "./plain", "bin/agent", "true")))
    await agent.follow(lines.append)

    assert lines == ["from the worktree"]


async def test_a_program_is_looked_up_where_the_agent_would_find_it(bench: Bench) -> None:
    tools = bench.worktree / "tools"
    tools.mkdir()
    (tools / "agent").write_text("#!/bin/sh\necho from PATH\n")
    (tools / "agent").chmod(0o755)
    lines: list[str] = []

    executor = bench.executor({"PATH": f"tools:{tools}:/bin"})
    agent, _ = await bench.launch(Command(("agent",)), executor=executor)
    await agent.follow(lines.append)

    assert lines == ["from PATH"]


async def test_an_agent_without_a_program_is_refused_and_all_candidates_are_named(
    bench: Bench,
) -> None:
    dispatch_id = bench.id()

    with pytest.raises(Refused, match=r"tried: no-such-agent, ./bin/none, /nowhere/agent;"):
        await bench.launch(
            Command(("no-such-agent", "./bin/none", "/nowhere/agent")), dispatch_id=dispatch_id
        )

    assert not bench.folder(dispatch_id).exists()


async def test_a_program_that_does_not_execute_is_refused_and_that_is_on_record(
    bench: Bench,
) -> None:
    (bench.worktree / "garbage").write_bytes(b"\x00\x01\x02")
    (bench.worktree / "garbage").chmod(0o755)
    dispatch_id = bench.id()

    with pytest.raises(Refused, match=r"garbage: Exec format error"):
        await bench.launch(Command(("./garbage",)), dispatch_id=dispatch_id)
    agent = await bench.executor().attach(dispatch_id)

    assert agent is not None
    assert agent.exit is not None
    assert "Exec format error" in agent.exit.spawn_error
    assert not bench.shims(dispatch_id)


async def test_a_worktree_that_has_gone_is_no_fault_of_the_program_s(bench: Bench) -> None:
    command = python("pass")
    bench.worktree.rmdir()

    with pytest.raises(Unavailable, match=r"cannot enter .*worktree: No such file"):
        await bench.launch(command)


async def test_a_dispatch_is_launched_only_once(bench: Bench) -> None:
    first, dispatch_id = await bench.launch(python("import time; time.sleep(60)"))

    with pytest.raises(Refused, match="is there already"):
        await bench.launch(python("pass"), dispatch_id=dispatch_id)

    again = await bench.executor().attach(dispatch_id)
    assert again is not None
    assert again.pid == first.pid


@pytest.mark.parametrize("hostile", ["../escape", "", "a/b", ".trash-x", "x" * 65, "a\n"])
async def test_what_is_no_dispatch_id_is_refused(bench: Bench, hostile: str) -> None:
    executor = bench.executor()

    for attempt in (executor.attach, executor.discard):
        with pytest.raises(Refused, match="no dispatch id"):
            await attach_or_discard(attempt, hostile)


async def attach_or_discard(attempt: object, hostile: str) -> None:
    assert callable(attempt)
    await attempt(hostile)


async def test_a_shim_that_cannot_be_started_leaves_nothing(bench: Bench) -> None:
    dispatch_id = bench.id()
    executor = bench.executor(python="/nowhere/python")

    with pytest.raises(Unavailable, match="No such file"):
        await bench.launch(python("pass"), dispatch_id=dispatch_id, executor=executor)

    assert not bench.folder(dispatch_id).exists()
    assert await executor.attach(dispatch_id) is None


async def test_a_shim_that_dies_without_a_word_leaves_nothing_that_starts_later(
    bench: Bench,
) -> None:
    dispatch_id = bench.id()
    executor = bench.executor(python="/bin/true")

    with pytest.raises(Unavailable, match="its shim died"):
        await bench.launch(python("pass"), dispatch_id=dispatch_id, executor=executor)

    assert (bench.folder(dispatch_id) / "tombstone").exists()
    assert await bench.executor().attach(dispatch_id) is None


@pytest.mark.parametrize("detached", [False, True])
async def test_a_shim_that_does_not_answer_is_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, detached: bool
) -> None:
    monkeypatch.setattr("chump_orchestrator.adapters.local.launching.ANSWER_S", 1.0)
    born = bench.worktree / "born"
    mute = bench.worktree / "mute"
    mute.write_text(
        f"#!{sys.executable} -IS\n"
        f"import os, time\nif {detached} and os.fork(): os._exit(0)\n"
        f"open({str(born)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    mute.chmod(0o755)
    dispatch_id = bench.id()
    executor = bench.executor(python=str(mute))

    with pytest.raises(Unavailable, match="did not answer within"):
        await bench.launch(python("pass"), dispatch_id=dispatch_id, executor=executor)

    assert born.read_text()
    assert not bench.shims(dispatch_id)
    assert (bench.folder(dispatch_id) / "tombstone").exists()


async def test_a_disk_that_refuses_the_order_is_unavailable(bench: Bench) -> None:
    bench.state.mkdir()
    (bench.state / "d").write_text("in the way")

    with pytest.raises(Unavailable, match="could not be started in"):
        await bench.launch(python("pass"))


def take_all_descriptors(taken: list[int]) -> None:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))


async def test_without_descriptors_left_an_agent_is_unavailable(bench: Bench) -> None:
    dispatch_id = bench.id()
    executor = bench.executor()
    await anyio.to_thread.run_sync(int)  # the thread is there already
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        with pytest.raises(OSError, match="Too many open files"):
            take_all_descriptors(taken)
        os.close(taken.pop())
        os.close(taken.pop())
        with pytest.raises(Unavailable, match="Too many open files"):
            await bench.launch(python("pass"), dispatch_id=dispatch_id, executor=executor)
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert await executor.attach(dispatch_id) is None


async def test_an_environment_of_a_megabyte_is_handed_over(bench: Bench) -> None:
    seen = {**SEEN, **{f"BIG_{number}": "x" * 100_000 for number in range(10)}}
    lines: list[str] = []

    agent, _ = await bench.launch(
        python("import os; print(sum(map(len, os.environ.values())) > 10**6)"),
        executor=bench.executor(seen),
    )
    await agent.follow(lines.append)

    assert lines == ["True"]


async def test_cancelling_a_launch_leaves_the_agent_running_and_recorded(bench: Bench) -> None:
    dispatch_id = bench.id()
    executor = bench.executor()

    with anyio.CancelScope() as scope:
        scope.cancel()
        await bench.launch(
            python("import time; time.sleep(60)"), dispatch_id=dispatch_id, executor=executor
        )

    agent = await executor.attach(dispatch_id)
    assert agent is not None
    assert agent.pid in marked(dispatch_id)


@pytest.mark.parametrize("delay_ms", [0, 5, 20, 40, 60])
async def test_a_task_cancelled_at_any_moment_of_a_launch_waits_for_its_end(
    bench: Bench, delay_ms: int
) -> None:
    """Reliability, fault 15: cancelled during each step of a launch."""
    dispatch_id = bench.id()
    executor = bench.executor()
    launching = asyncio.create_task(
        bench.launch(
            python("import time; time.sleep(60)"), dispatch_id=dispatch_id, executor=executor
        )
    )
    await anyio.sleep(delay_ms / 1000)

    launching.cancel()
    launching.cancel()
    with pytest.raises(asyncio.CancelledError) if not launching.done() else nothing():
        await launching

    agent = await executor.attach(dispatch_id)
    if delay_ms == 0:  # it had not begun
        assert agent is None or agent.pid in marked(dispatch_id)
    else:
        assert agent is not None
        assert agent.pid in marked(dispatch_id)


class nothing:  # noqa: N801 - reads as contextlib.nullcontext does
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


async def run_daemon(bench: Bench, script: str) -> tuple[int | None, bytes]:
    """Run `main(bench)` of a script as a daemon would be, to its end; its code and complaints."""
    daemon = f"""
import asyncio, ctypes, gc, psutil
from pathlib import Path
from tests.adapters.launches import Bench, ignore, python
{script}
bench = Bench(Path({str(bench.worktree)!r}) / "other")
bench.state = Path({str(bench.state)!r})
asyncio.run(main(bench))
gc.collect()
"""
    root = Path(__file__).parents[2]
    done = await anyio.run_process(
        [sys.executable, "-W", "always", "-c", daemon], cwd=root, check=False
    )
    return done.returncode, done.stderr


async def test_an_agent_outlives_the_loop_that_launched_it(bench: Bench) -> None:
    """Promise I8; asyncio's own transports kill a child that still runs when they are dropped."""
    dispatch_id = bench.id()

    ended = await run_daemon(
        bench,
        f"""
async def main(bench):
    await bench.launch(python("import time; time.sleep(60)"), dispatch_id={dispatch_id!r})
    assert not psutil.Process().children(), "asyncio still has a child"
""",
    )
    agent = await bench.executor().attach(dispatch_id)

    assert ended == (0, b"")
    assert agent is not None
    assert agent.exit is None
    assert agent.pid in marked(dispatch_id)


async def test_a_shim_is_no_child_of_the_daemon(bench: Bench) -> None:
    _, dispatch_id = await bench.launch(python("import time; time.sleep(60)"))

    shim = psutil.Process(bench.shim_of(dispatch_id))
    assert shim.ppid() != os.getpid()
    assert not psutil.Process().children(recursive=True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a subreaper")
@pytest.mark.parametrize("killed", [False, True])
async def test_where_orphans_come_to_the_daemon_it_reaps_them(bench: Bench, killed: bool) -> None:
    """They do where it is the first process of a container."""
    ended = await run_daemon(
        bench,
        f"""
async def main(bench):
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    agent, _ = await bench.launch(python("import time; time.sleep({60 if killed else 1})"))
    assert [child.ppid() for child in psutil.Process().children()], "no orphan has come"
    if {killed}:
        psutil.Process().children()[0].kill()
    ended = await agent.follow(ignore)
    assert bool(ended.lost) is {killed}, ended
    assert not psutil.Process().children(), "a zombie is left"
""",
    )

    assert ended == (0, b"")


async def test_discarding_deletes_all_that_an_agent_has_left(bench: Bench) -> None:
    script = "import os; d = os.environ['TMPDIR'] + '/a'; os.makedirs(d + '/b'); os.chmod(d, 0o500)"
    executor = bench.executor()
    agent, dispatch_id = await bench.launch(python(script), executor=executor)
    await agent.follow(ignore)
    (bench.state / "d" / ".trash-of-before").mkdir()
    assert await executor.known() == (dispatch_id,)

    await executor.discard(dispatch_id)
    await executor.discard(dispatch_id)

    assert await executor.known() == ()
    assert not list((bench.state / "d").iterdir())


async def test_a_running_agent_is_not_discarded(bench: Bench) -> None:
    agent, dispatch_id = await bench.launch(python("import time; time.sleep(60)"))

    with pytest.raises(Refused, match="its agent runs"):
        await bench.executor().discard(dispatch_id)

    assert agent.pid in marked(dispatch_id)
    assert bench.folder(dispatch_id).is_dir()
