"""Which repository, user and service manager the commands of `service` are about."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import click

from chump_orchestrator import config, premises
from chump_orchestrator.adapters import process
from chump_orchestrator.cli.options import Invocation, here
from chump_orchestrator.cli.repository import wait_for
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.gap import plain
from chump_orchestrator.service.identity import Identity, named, own, owner_of
from chump_orchestrator.service.programs import own_program
from chump_orchestrator.service.survey import Survey, survey
from chump_orchestrator.service.targets import Target, scopes, target
from chump_orchestrator.service.units import HOMES

SURVEY_LIMIT = timedelta(minutes=2)
"""Reading a large backlog takes seconds; a hanging git or file system, for ever."""

ROOT = 0


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for: `user`, `system` or either, as whom, and folders for the path."""

    scope: str | None
    user: str | None = None
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Site:
    """A repository with the manager of its service, and the user whom that runs as."""

    root: Path
    target: Target
    identity: Identity
    program: tuple[str, ...]
    folders: tuple[str, ...] = ()

    @classmethod
    def found(cls, invocation: Invocation, wish: Wish, *, must_run: bool = True) -> Site:
        """Return where a service would be installed: the user's own by default, root's the system.

        Raises `ConfigError` when there is no repository, `MissingProgram` when there is no such
        manager here and it `must_run`.
        """
        start, environ = _start(invocation), config.environment()
        is_roots = os.geteuid() == ROOT and False in scopes()
        is_user = wish.scope == "user" or (wish.scope is None and not is_roots)
        if is_user and wish.user is not None:
            msg = "--as is for --system; a user's own service runs as that user"
            raise click.UsageError(msg)
        if is_user:
            identity = own(environ)
        else:
            identity = owner_of(start) if wish.user is None else named(wish.user)
        manager = target(identity, environ, is_user=is_user, must_run=must_run)
        folders = tuple(os.path.abspath(one) for one in wish.folders)  # noqa: PTH100 - links stay
        return cls(_located(start, identity, environ), manager, identity, own_program(), folders)

    @classmethod
    def installed(cls, invocation: Invocation, wish: Wish) -> Site:
        """Return where the service is installed, or would be where it is not.

        `UsageError` when it is there for this user and for the machine, and it was not said which
        is meant. A repository that is named need not be there any more.
        """
        start, environ = _start(invocation), config.environment()
        me = own(environ)
        owner = owner_of(start) if start.is_dir() else me
        root = start
        try:
            root = _located(start, owner, environ) if start.is_dir() else start
        except ConfigError:
            # Git opens a repository of somebody else's for nobody; its service can be looked at.
            if not _is_served(start, me, environ):
                raise
        sites = []
        for is_user in scopes() if wish.scope is None else (wish.scope == "user",):
            identity = me if is_user else owner
            manager = target(identity, environ, is_user=is_user)
            sites.append(cls(root, manager, identity, own_program()))
        there = [site for site in sites if site.target.file(site.root).exists()]
        if len(there) > 1:
            msg = "it is installed for this user and for the machine; say --user or --system"
            raise click.UsageError(msg)
        return (there or sites)[0]

    @property
    def is_visible(self) -> bool:
        """Whether the repository can be seen as the service sees it: by its user, and by root."""
        return os.geteuid() in (ROOT, self.identity.uid)

    def command(self, *words: str) -> tuple[str, ...]:
        """Return a command line of this program for the repository, as the service's user."""
        argv = (*self.program, *words, "--repo-root", str(self.root))
        return self.identity.command(argv) if _is_for_root(self.identity) else argv

    def environ(self, path: Iterable[str] = ()) -> dict[str, str]:
        """Return the environment to survey with; `path` takes the place of this shell's."""
        given = config.environment()
        if not self.target.is_user:
            given = self.identity.environ(given)
        folders = tuple(path)
        return {**given, "PATH": ":".join(folders)} if folders else given

    def survey(self, path: Iterable[str] = ()) -> Survey:
        """Look at the repository as the service will see it.

        With `path`, programs are looked for there and nowhere else. Raises `ConfigError` when
        the service's user cannot run this program, or is not let into the repository.
        """
        environ = self.environ(path)
        unseen = () if self.target.is_user else HOMES
        if _is_for_root(self.identity):
            return _surveyed(self.root, self.identity, environ, self.folders, unseen)
        loaded, wrong = config.salvage(self.root)
        return wait_for(
            partial(survey, self.root, loaded, wrong, environ, more=self.folders, unseen=unseen)
        )


def _start(invocation: Invocation) -> Path:
    return Path(os.path.abspath(invocation.repo_root or here()))  # noqa: PTH100 - links stay


def _is_served(root: Path, me: Identity, environ: Mapping[str, str]) -> bool:
    """Say whether there is a service of a repository that cannot be opened."""
    targets = (target(me, environ, is_user=is_user) for is_user in scopes())
    return any(one.file(root).exists() for one in targets)


def _is_for_root(identity: Identity) -> bool:
    """Say whether root must become somebody else to look; git opens what is theirs for no other."""
    return os.geteuid() == ROOT != identity.uid


def _located(start: Path, identity: Identity, environ: Mapping[str, str]) -> Path:
    """Return the main work tree of the repository around `start`."""
    if not _is_for_root(identity):
        return premises.locate(start, start)
    return Path(_surveyed(start, identity, identity.environ(environ), (), ()).root)


def _surveyed(
    where: Path,
    identity: Identity,
    environ: Mapping[str, str],
    folders: Iterable[str],
    unseen: Iterable[str],
) -> Survey:
    """Have this program survey a repository as another user."""
    words = [*own_program(), "service", "survey", "--repo-root", str(where)]
    for name, values in (("--path", folders), ("--unseen", unseen)):
        words += [word for value in values for word in (name, value)]
    done = wait_for(
        partial(process.run, identity.command(words), cwd="/", env=environ, timeout=SURVEY_LIMIT)
    )
    if done.code:
        said = plain(done.err.decode("utf-8", "replace")).strip() or f"exit {done.code}"
        raise ConfigError(
            f"as {identity.name}, {words[0]} fails: {said}; it must be installed where this user"
            " can read it, such as /opt, and the repository must be theirs"
        )
    try:
        return Survey.from_json(done.out.decode("utf-8", "replace"))
    except ValueError as error:
        raise ConfigError(f"{words[0]} answers what nobody understands: {error}") from error
