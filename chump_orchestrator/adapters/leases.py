"""Who holds which gap: files that this orchestrator and other tools write into one folder.

A lease is a claim, not a lock: it counts until it ends. Whatever cannot be read is reported,
neither trusted nor removed (behaviour L1 to L3, D4).
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio.to_thread

from chump_orchestrator.adapters.git import file_lock
from chump_orchestrator.adapters.git_manners import without_foreign_git
from chump_orchestrator.adapters.lease_files import Claim, LeaseFolder, live
from chump_orchestrator.adapters.process import run
from chump_orchestrator.core.dispatch import DISPATCH_ID_PATTERN, Workspace
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.gap import Gap, plain
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.core.records import Denied, Lease
from chump_orchestrator.telling import Logger

log = Logger()

SCRIPTS = ("scripts/coord/gap-claim.sh", "scripts/gap-claim.sh")
"""Of the new worktree; the first that is there claims in place of the built-in lease."""

SCRIPT_TIMEOUT = timedelta(seconds=60)
"""For a claim script, which may sleep for seconds and install hooks (behaviour D4)."""

LOCK_TIMEOUT = timedelta(seconds=10)
"""For the folder's lock, which is held for a few files' time."""

MADE_BY = "chump-orchestrator"
"""Value of `made_by` in the leases that are ours to remove after a restart."""


class FileLeases:
    """`core.ports.Leases` in the folder `dir`, made where it is missing.

    `ttl` is how long a lease lasts without being renewed. `worktrees_dir` holds worktrees, whose
    own `.chump-locks` are read, too. `env` is what claim scripts get, with their own variables.
    """

    def __init__(
        self,
        *,
        dir: Path,  # noqa: A002 - the name of the setting
        ttl: timedelta,
        worktrees_dir: Path,
        clock: Clock,
        env: Mapping[str, str],
    ) -> None:
        self._dir = dir
        self._ttl = ttl
        self._folder = LeaseFolder(dir, worktrees_dir)
        self._clock = clock
        self._env = {**without_foreign_git(env), "GIT_TERMINAL_PROMPT": "0"}

    @property
    def notices(self) -> tuple[str, ...]:
        """What was not readable when the leases were last read, a sentence each."""
        return self._folder.notices

    async def claim(self, gap: Gap, dispatch_id: str, workspace: Workspace) -> Denied | None:
        _check(dispatch_id)
        claims = await self._claims()
        if self._ours(claims, gap.id, dispatch_id):
            return None
        if denied := self._denied(claims, gap.id, dispatch_id):
            return denied
        script = await anyio.to_thread.run_sync(_script, Path(workspace.path))
        if script is not None:
            return await self._claim_by(script, gap, dispatch_id, workspace)
        async with self._locked():
            if denied := self._denied(await self._claims(), gap.id, dispatch_id):
                return denied
            now = self._clock.now()
            file = self._dir / f"{dispatch_id}.json"
            fields = {
                "session_id": dispatch_id,
                "paths": list(gap.paths),
                "taken_at": _written(now),
                "expires_at": _written(now + self._ttl),
                "heartbeat_at": _written(now),
                "purpose": f"gap:{gap.id}",
                "gap_id": gap.id,
                "made_by": MADE_BY,
            }
            await anyio.to_thread.run_sync(_write, file, fields)
            # Tools that do not know the lock may have written in the meantime.
            claims = await self._claims()
            own = next(iter(self._ours(claims, gap.id, dispatch_id)), None)
            others = self._others(claims, gap.id, dispatch_id)
            if own is None or any(other.rank < own.rank for other in others):
                await anyio.to_thread.run_sync(_remove, file)
                return self._denied(claims, gap.id, dispatch_id) or Denied(
                    f"the lease {file} vanished while it was taken"
                )
        return None

    async def renew(self, dispatch_id: str) -> None:
        _check(dispatch_id)
        async with self._locked():
            now = self._clock.now()
            claims = await self._claims()
            for claim in claims:
                if claim.holder != dispatch_id:
                    continue
                if claim.expires_at <= now and self._others(claims, claim.gap, dispatch_id):
                    # It ended, and the gap was taken: reviving it would make two holders.
                    log.warning("lease.lost", gap=claim.gap, dispatch=dispatch_id)
                else:
                    fields = {
                        **claim.fields,
                        "expires_at": _written(now + self._ttl),
                        "heartbeat_at": _written(now),
                        "made_by": MADE_BY,
                    }
                    await anyio.to_thread.run_sync(_write, claim.file, fields)

    async def release(self, dispatch_id: str) -> None:
        _check(dispatch_id)
        async with self._locked():
            for claim in await self._claims():
                if claim.holder == dispatch_id:
                    await anyio.to_thread.run_sync(_remove, claim.file)

    async def live(self) -> tuple[Lease, ...]:
        return live(await self._claims(), self._clock.now())

    async def held_by_us(self) -> tuple[str, ...]:
        ours = (
            claim.holder
            for claim in await self._claims()
            if claim.fields.get("made_by") == MADE_BY
            and DISPATCH_ID_PATTERN.fullmatch(claim.holder)
        )
        return tuple(dict.fromkeys(ours))

    async def _claim_by(
        self, script: Path, gap: Gap, dispatch_id: str, workspace: Workspace
    ) -> Denied | None:
        variables = {"CHUMP_SESSION_ID": dispatch_id, "CHUMP_LOCK_DIR": str(self._dir)}
        finished = await run(
            ("bash", str(script), gap.id),
            cwd=workspace.path,
            env={**self._env, **variables},
            timeout=SCRIPT_TIMEOUT,
        )
        if finished.code == 0:
            await self.renew(dispatch_id)
            return None
        said = (finished.err.strip() or finished.out.strip()).decode("utf-8", "replace")
        reason = plain(said.rpartition("\n")[2])[:300] or f"exit code {finished.code}"
        denied = self._denied(await self._claims(), gap.id, dispatch_id)
        return Denied(f"{script.name}: {reason}", None if denied is None else denied.until)

    @contextlib.asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        try:
            await anyio.to_thread.run_sync(lambda: self._dir.mkdir(parents=True, exist_ok=True))
        except OSError as error:
            raise Unavailable(f"{self._dir} cannot be made: {error.strerror}") from error
        async with file_lock(self._dir / ".lock", LOCK_TIMEOUT):
            yield

    def _others(self, claims: tuple[Claim, ...], gap_id: str, dispatch_id: str) -> list[Claim]:
        now = self._clock.now()
        return sorted(
            (
                claim
                for claim in claims
                if claim.gap == gap_id and claim.holder != dispatch_id and claim.expires_at > now
            ),
            key=lambda claim: claim.rank,
        )

    def _ours(self, claims: tuple[Claim, ...], gap_id: str, dispatch_id: str) -> list[Claim]:
        now = self._clock.now()
        return [
            claim
            for claim in claims
            if claim.gap == gap_id and claim.holder == dispatch_id and claim.expires_at > now
        ]

    def _denied(self, claims: tuple[Claim, ...], gap_id: str, dispatch_id: str) -> Denied | None:
        others = self._others(claims, gap_id, dispatch_id)
        if not others:
            return None
        until = max(claim.expires_at for claim in others)
        return Denied(f"{gap_id} is held by {others[0].holder} until {_written(until)}", until)

    async def _claims(self) -> tuple[Claim, ...]:
        return await anyio.to_thread.run_sync(self._read_all)

    def _read_all(self) -> tuple[Claim, ...]:
        return self._folder.claims()


def _check(dispatch_id: str) -> None:
    if not DISPATCH_ID_PATTERN.fullmatch(dispatch_id):
        raise Refused(f"{dispatch_id!r} is no dispatch id and cannot hold a lease")


def _script(worktree: Path) -> Path | None:
    return next((worktree / name for name in SCRIPTS if (worktree / name).is_file()), None)


def _written(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _write(file: Path, fields: Mapping[str, Any]) -> None:
    draft = file.with_name(f".{file.name}.new")
    try:
        with draft.open("w", encoding="utf-8") as opened:
            json.dump(fields, opened, indent=2)
            opened.write("\n")
            opened.flush()
            os.fsync(opened.fileno())
        draft.replace(file)
    except OSError as error:
        raise Unavailable(f"{file} cannot be written: {error.strerror}; see the disk") from error


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise Unavailable(f"{file} cannot be removed: {error.strerror}") from error
