"""Leases: one holder for each gap, whoever else writes into the folder (behaviour L1 to L3, D4)."""

import fcntl
import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from chump_orchestrator.adapters.leases import FileLeases
from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.errors import Refused
from chump_orchestrator.core.records import Denied, Lease
from tests.builders import NOW, a_gap

TTL = timedelta(hours=4)
OURS = "infra-1-260427120000-aaaaaa"
OTHER = "infra-1-260427120000-bbbbbb"


class AClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.moment = NOW

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()


class AFolder:
    """The folder of leases, a worktree, and a clock for all."""

    def __init__(self, root: Path) -> None:
        self.dir = root / ".chump-locks"
        self.worktrees = root / "worktrees"
        self.worktree = self.worktrees / "infra-1"
        self.worktree.mkdir(parents=True)
        self.workspace = Workspace(str(self.worktree), "claude/infra-1", "0" * 40)
        self.clock = AClock()

    def leases(self) -> FileLeases:
        return FileLeases(
            dir=self.dir,
            ttl=TTL,
            worktrees_dir=self.worktrees,
            clock=self.clock,
            env=dict(os.environ),
        )

    def write(self, holder: str, folder: Path | None = None, **fields: Any) -> Path:
        folder = folder or self.dir
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "session_id": holder,
            "taken_at": "2026-04-27T11:00:00Z",
            "expires_at": "2026-04-27T13:00:00Z",
            "gap_id": "INFRA-1",
        } | fields
        file = folder / f"{holder}.json"
        file.write_text(json.dumps(content))
        return file

    def script(self, text: str, place: str = "scripts/coord/gap-claim.sh") -> None:
        file = self.worktree / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def files(self) -> list[str]:
        return sorted(file.name for file in self.dir.glob("*.json"))


@pytest.fixture
def folder(tmp_path: Path) -> AFolder:
    return AFolder(tmp_path)


async def test_a_claim_is_a_file_that_other_tools_understand(folder: AFolder) -> None:
    gap = a_gap("INFRA-1", paths=("src/", "docs/a.md"))

    denied = await folder.leases().claim(gap, OURS, folder.workspace)

    assert denied is None
    assert json.loads((folder.dir / f"{OURS}.json").read_text()) == {
        "session_id": OURS,
        "paths": ["src/", "docs/a.md"],
        "taken_at": "2026-04-27T12:00:00Z",
        "expires_at": "2026-04-27T16:00:00Z",
        "heartbeat_at": "2026-04-27T12:00:00Z",
        "purpose": "gap:INFRA-1",
        "gap_id": "INFRA-1",
        "made_by": "chump-orchestrator",
    }
    assert {file.name for file in folder.dir.iterdir()} == {".lock", f"{OURS}.json"}


async def test_claiming_twice_is_claiming_once(folder: AFolder) -> None:
    leases = folder.leases()
    await leases.claim(a_gap(), OURS, folder.workspace)
    before = (folder.dir / f"{OURS}.json").read_text()
    folder.clock.moment += timedelta(hours=1)

    assert await folder.leases().claim(a_gap(), OURS, folder.workspace) is None
    assert (folder.dir / f"{OURS}.json").read_text() == before


async def test_a_gap_that_somebody_holds_is_denied_until_then(folder: AFolder) -> None:
    folder.write("somebody")

    denied = await folder.leases().claim(a_gap(), OURS, folder.workspace)

    until = datetime(2026, 4, 27, 13, tzinfo=UTC)
    assert denied == Denied("INFRA-1 is held by somebody until 2026-04-27T13:00:00Z", until)
    assert folder.files() == ["somebody.json"]


async def test_the_purpose_names_the_gap_where_gap_id_is_missing(folder: AFolder) -> None:
    folder.write("somebody", gap_id=None, purpose="gap:INFRA-1")

    assert await folder.leases().claim(a_gap(), OURS, folder.workspace) is not None


async def test_a_lease_in_a_worktrees_own_folder_counts(folder: AFolder) -> None:
    """Behaviour L2."""
    folder.write("somebody", folder.worktrees / "other" / ".chump-locks")

    assert await folder.leases().claim(a_gap(), OURS, folder.workspace) is not None


@pytest.mark.parametrize("expires", ["2026-04-27T12:00:00Z", "2026-04-27T13:59:59+02:00"])
async def test_a_lease_that_has_ended_is_in_nobodys_way(folder: AFolder, expires: str) -> None:
    """Behaviour L3."""
    folder.write("somebody", expires_at=expires)
    leases = folder.leases()

    assert await leases.live() == ()
    assert await leases.claim(a_gap(), OURS, folder.workspace) is None
    assert folder.files() == [f"{OURS}.json", "somebody.json"]


async def test_of_many_claimers_one_wins(folder: AFolder) -> None:
    answers: dict[str, Denied | None] = {}

    async def claim(number: int) -> None:
        holder = f"infra-1-260427120000-{number:06}"
        answers[holder] = await folder.leases().claim(a_gap(), holder, folder.workspace)

    async with anyio.create_task_group() as group:
        for number in range(12):
            group.start_soon(claim, number)

    winners = [holder for holder, denied in answers.items() if denied is None]
    assert len(winners) == 1
    assert folder.files() == [f"{winners[0]}.json"]


async def test_a_tool_that_ignores_the_lock_wins_when_it_was_earlier(folder: AFolder) -> None:
    """After writing, leases are read once more; the earliest `taken_at` wins (behaviour L1)."""

    class Sly(FileLeases):
        reads = 0

        def _read_all(self) -> Any:
            self.reads += 1
            if self.reads == 3:
                folder.write("sly", taken_at="2026-04-27T11:59:59Z")
            return super()._read_all()

    leases = Sly(
        dir=folder.dir,
        ttl=TTL,
        worktrees_dir=folder.worktrees,
        clock=folder.clock,
        env=dict(os.environ),
    )

    denied = await leases.claim(a_gap(), OURS, folder.workspace)

    assert leases.reads == 3
    assert denied is not None
    assert folder.files() == ["sly.json"]


async def test_a_tool_that_ignores_the_lock_loses_when_it_was_later(folder: AFolder) -> None:
    class Sly(FileLeases):
        reads = 0

        def _read_all(self) -> Any:
            self.reads += 1
            if self.reads == 3:
                folder.write("zzz", taken_at="2026-04-27T12:00:00Z")
            return super()._read_all()

    leases = Sly(
        dir=folder.dir,
        ttl=TTL,
        worktrees_dir=folder.worktrees,
        clock=folder.clock,
        env=dict(os.environ),
    )

    assert await leases.claim(a_gap(), OURS, folder.workspace) is None
    assert folder.files() == [f"{OURS}.json", "zzz.json"]


async def test_the_folders_lock_is_respected(folder: AFolder) -> None:
    folder.dir.mkdir()
    held = (folder.dir / ".lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    answers: list[Denied | None] = []

    async def claim() -> None:
        answers.append(await folder.leases().claim(a_gap(), OURS, folder.workspace))

    async with anyio.create_task_group() as group:
        group.start_soon(claim)
        await anyio.sleep(0.2)
        assert folder.files() == []
        held.close()

    assert answers == [None]


async def test_renewing_moves_the_end_and_keeps_what_others_wrote(folder: AFolder) -> None:
    leases = folder.leases()
    await leases.claim(a_gap(), OURS, folder.workspace)
    file = folder.dir / f"{OURS}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"note": "by a tool"}))
    folder.clock.moment += timedelta(hours=3)

    await leases.renew(OURS)
    await leases.renew(OTHER)

    content = json.loads(file.read_text())
    assert content["expires_at"] == "2026-04-27T19:00:00Z"
    assert content["heartbeat_at"] == "2026-04-27T15:00:00Z"
    assert content["taken_at"] == "2026-04-27T12:00:00Z"
    assert content["note"] == "by a tool"


async def test_an_ended_lease_is_not_revived_over_another_holder(folder: AFolder) -> None:
    leases = folder.leases()
    await leases.claim(a_gap(), OURS, folder.workspace)
    folder.clock.moment += timedelta(hours=5)
    await leases.claim(a_gap(), OTHER, folder.workspace)

    await leases.renew(OURS)

    assert [lease.holder for lease in await leases.live()] == [OTHER]


async def test_releasing_takes_away_ours_alone(folder: AFolder) -> None:
    leases = folder.leases()
    folder.write("somebody", gap_id="COG-7")
    await leases.claim(a_gap(), OURS, folder.workspace)

    await leases.release(OURS)
    await leases.release(OURS)

    assert folder.files() == ["somebody.json"]


async def test_live_leases_are_told_once_with_their_latest_end(folder: AFolder) -> None:
    leases = folder.leases()
    await leases.claim(a_gap(), OURS, folder.workspace)
    folder.write("somebody", gap_id="COG-7")
    folder.write(
        "somebody",
        folder.worktree / ".chump-locks",
        gap_id="COG-7",
        expires_at="2026-04-27T14:00:00Z",
    )
    folder.write("paths-only", gap_id=None, paths=["src/"])

    assert set(await leases.live()) == {
        Lease("INFRA-1", OURS, NOW + TTL),
        Lease("COG-7", "somebody", NOW + timedelta(hours=2)),
    }


async def test_ours_are_known_after_a_restart(folder: AFolder) -> None:
    await folder.leases().claim(a_gap(), OURS, folder.workspace)
    folder.write("cog-7-260427120000-cccccc", gap_id="COG-7")

    assert await folder.leases().held_by_us() == (OURS,)


async def test_a_script_that_accepts_claims_in_our_place(folder: AFolder) -> None:
    """Behaviour D4."""
    folder.script(
        """set -e
        [ "$1" = INFRA-1 ] && [ -z "${GIT_DIR:-}" ]
        pwd > "$CHUMP_LOCK_DIR/where"
        cat > "$CHUMP_LOCK_DIR/by-script.json" <<END
        {"session_id": "$CHUMP_SESSION_ID", "gap_id": "$1", "taken_at": "2026-04-27T12:00:00Z",
         "expires_at": "2026-04-27T12:30:00Z"}
END
        """
    )
    folder.dir.mkdir()
    leases = folder.leases()

    assert await leases.claim(a_gap(), OURS, folder.workspace) is None
    assert (folder.dir / "where").read_text().strip() == str(folder.worktree)
    assert folder.files() == ["by-script.json"]
    assert await leases.live() == (Lease("INFRA-1", OURS, NOW + TTL),)
    assert await folder.leases().held_by_us() == (OURS,)
    await leases.release(OURS)
    assert folder.files() == []


async def test_a_script_that_refuses_denies_with_its_last_line(folder: AFolder) -> None:
    folder.script("echo first >&2; echo 'held by \x1b[31mme' >&2; exit 3", "scripts/gap-claim.sh")

    denied = await folder.leases().claim(a_gap(), OURS, folder.workspace)

    assert denied == Denied("gap-claim.sh: held by [31mme")
    assert folder.files() == []


async def test_the_script_in_scripts_coord_goes_first(folder: AFolder) -> None:
    folder.script("exit 0", "scripts/coord/gap-claim.sh")
    folder.script("exit 1", "scripts/gap-claim.sh")

    assert await folder.leases().claim(a_gap(), OURS, folder.workspace) is None


GARBAGE: dict[str, bytes] = {
    "empty": b"",
    "torn": b'{"session_id": "x", "gap',
    "list": b"[1, 2]",
    "deep": b"[" * 60_000,
    "number": b"9" * 20_000,
    "latin": b'{"session_id": "\xe9\xff"}',
    "no-holder": b'{"gap_id": "INFRA-1", "taken_at": "x", "expires_at": "y"}',
    "no-end": b'{"session_id": "x", "gap_id": "INFRA-1", "taken_at": "2026-04-27T12:00:00Z"}',
    "end-of-time": b'{"session_id": "x", "gap_id": "INFRA-1",'
    b' "taken_at": "0001-01-01T00:00:00+12:00", "expires_at": "9999-12-31T23:59:59-12:00"}',
    "nonsense-end": b'{"session_id": "x", "taken_at": "soon", "expires_at": "later"}',
    "odd-types": b'{"session_id": ["x"], "taken_at": 1, "expires_at": {}}',
    "large": b'{"session_id": "' + b"x" * 100_000 + b'"}',
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_is_reported_neither_trusted_nor_removed(folder: AFolder, name: str) -> None:
    """Behaviour L2."""
    folder.dir.mkdir()
    file = folder.dir / f"{name}.json"
    file.write_bytes(GARBAGE[name])
    leases = folder.leases()

    denied = await leases.claim(a_gap(), OURS, folder.workspace)

    assert denied is None
    assert [str(file) in notice for notice in leases.notices] == [True]
    assert file.read_bytes() == GARBAGE[name]


async def test_a_pipe_a_folder_and_a_loop_do_not_hang(folder: AFolder) -> None:
    folder.dir.mkdir()
    os.mkfifo(folder.dir / "pipe.json")
    (folder.dir / "folder.json").mkdir()
    (folder.dir / "loop.json").symlink_to("loop.json")
    (folder.dir / "zero.json").symlink_to("/dev/zero")
    (folder.dir / "gone.json").symlink_to("gone")
    leases = folder.leases()

    with anyio.fail_after(30):
        assert await leases.claim(a_gap(), OURS, folder.workspace) is None

    assert len(leases.notices) == 4


async def test_a_hostile_gap_or_holder_is_no_lease_of_a_gap(folder: AFolder) -> None:
    folder.write("x", gap_id="../../etc/passwd")
    folder.write("y", gap_id="INFRA-1\n")
    folder.write("z", gap_id=["INFRA-1"])

    assert await folder.leases().live() == ()


@pytest.mark.parametrize("dispatch_id", ["", "../x", "a/b", "a" * 65])
async def test_an_id_that_is_no_file_name_is_refused(folder: AFolder, dispatch_id: str) -> None:
    leases = folder.leases()

    with pytest.raises(Refused):
        await leases.claim(a_gap(), dispatch_id, folder.workspace)
    with pytest.raises(Refused):
        await leases.release(dispatch_id)


async def test_another_gap_is_another_lease(folder: AFolder) -> None:
    leases = folder.leases()
    other = replace(a_gap(), id="COG-7")

    assert await leases.claim(a_gap(), OURS, folder.workspace) is None
    assert await leases.claim(other, OTHER, folder.workspace) is None
    assert folder.files() == [f"{OURS}.json", f"{OTHER}.json"]
