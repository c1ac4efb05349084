"""Whether the installed service is what `service install` would write now."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

from chump_orchestrator.adapters.process import run
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.gap import plain
from chump_orchestrator.doctor.findings import Check, Finding, ok, skip, warn
from chump_orchestrator.doctor.installed import Service
from chump_orchestrator.doctor.service import ANEW, NONE, SERVICE
from chump_orchestrator.doctor.subject import Subject, in_thread
from chump_orchestrator.service.difference import Kind, compared
from chump_orchestrator.service.identity import Identity, named, own
from chump_orchestrator.service.programs import own_program
from chump_orchestrator.service.survey import Survey, survey
from chump_orchestrator.service.targets import drift, path_in, target
from chump_orchestrator.service.units import HOMES

SURVEY_LIMIT = timedelta(seconds=50)
"""For another user's look at the repository, which reads its backlog."""

ROOT = 0


async def look_at_drift(subject: Subject) -> Sequence[Finding]:
    """Compare the installed unit with the one that would be written now, on the PATH it has."""
    service = await subject.service()
    if service is None:
        return [skip(NONE)]
    if service.scope == "system" and (service.is_launchd or os.geteuid() != ROOT):
        return [skip(f"only root can tell of {service.name}")]
    path = service.unit.path
    kind, text = await in_thread(compared, path, "")
    is_user = service.scope == "user"
    identity = own(subject.environ) if is_user else named(service.user)
    manager = target(identity, subject.environ, is_user=is_user, must_run=False)
    if kind is Kind.FOREIGN or manager.file(subject.root) != path:
        return [ok(f"{path} was written by hand, so there is nothing to compare it with")]
    seen = await _surveyed(subject, service, identity, path_in(text))
    state = await manager.state(subject.root)
    # What is amiss with programs and settings, other checks tell.
    known = {*seen.missing, *seen.wrong.splitlines()}
    told = drift(manager, subject.root, seen, own_program(), state)
    changed = [warn(line, ANEW) for line in told if line not in known]
    drop_ins = f", with {len(service.unit.drop_ins)} drop-ins" if service.unit.drop_ins else ""
    return changed or [ok(f"{path} is as it would be written now{drop_ins}")]


async def _surveyed(
    subject: Subject, service: Service, identity: Identity, path: Sequence[str]
) -> Survey:
    """Look at the repository as the service's user, on the service's path."""
    if service.scope == "user" or identity.uid == os.geteuid():
        environ = {**subject.environ, "PATH": ":".join(path)}
        unseen = () if service.scope == "user" else HOMES
        return await survey(subject.root, subject.loaded, subject.wrong, environ, unseen=unseen)
    words = [*own_program(), "service", "survey", "--repo-root", str(subject.root)]
    words += [word for home in HOMES for word in ("--unseen", home)]
    environ = {**identity.environ(subject.environ), "PATH": ":".join(path)}
    done = await run(identity.command(words), cwd="/", env=environ, timeout=SURVEY_LIMIT)
    if done.code:
        said = plain(done.err.decode("utf-8", "replace")).strip()[:200]
        raise Unavailable(f"as {identity.name}, {words[0]} fails: {said or done.code}")
    try:
        return Survey.from_json(done.out.decode("utf-8", "replace"))
    except ValueError as error:
        raise Unavailable(f"{words[0]} is another version: {error}") from error


CHECKS = (
    Check(
        "service-drift",
        SERVICE,
        "the unit is what would be written now",
        look_at_drift,
        limit_s=60.0,
    ),
)
