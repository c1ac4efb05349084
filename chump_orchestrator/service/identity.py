"""As whom a service runs, and how something is done with the rights and the home of that user."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from chump_orchestrator.core.errors import ConfigError

KEPT = ("LANG", "LC_ALL", "TZ")
"""Variables of whoever installs that the other user is given, too."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A user of this machine."""

    name: str
    uid: int
    gid: int
    home: str

    def command(self, argv: Iterable[str]) -> tuple[str, ...]:
        """Return a command line that root has the user carry out."""
        rights = ("--reuid", str(self.uid), "--regid", str(self.gid), "--init-groups")
        return ("setpriv", *rights, "--", *argv)

    def environ(self, given: Mapping[str, str]) -> dict[str, str]:
        """Return what the user finds set at the start of a service, and the path to search.

        Programs that the user has installed in their home come first, those of root behind them.
        """
        own = f"{self.home}/.local/bin"
        kept = {name: given[name] for name in KEPT if name in given}
        return {
            **kept,
            "HOME": self.home,
            "USER": self.name,
            "LOGNAME": self.name,
            "PATH": ":".join((own, given.get("PATH", ""))),
        }


def named(name: str) -> Identity:
    """Return a user by name; `ConfigError` when there is none, with how to make one."""
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise ConfigError(
            f"there is no user {name!r} on this machine; make one with a home, such as `useradd"
            f" --system --create-home --home-dir /var/lib/{name} {name}`, give it the repository"
            f" (chown -R), and log git, gh and the agent in as this user"
        ) from None
    return Identity(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def own(environ: Mapping[str, str]) -> Identity:
    """Return who asks; `ConfigError` for a user whom this machine does not know."""
    try:
        entry = pwd.getpwuid(os.geteuid())
    except KeyError:
        raise ConfigError(f"this machine knows no user of number {os.geteuid()}") from None
    home = environ.get("HOME") or entry.pw_dir
    return Identity(entry.pw_name, entry.pw_uid, os.getegid(), home)


def owner_of(folder: Path) -> Identity:
    """Return whose folder it is; `ConfigError` when it is not there, or nobody's."""
    try:
        entry = pwd.getpwuid(folder.stat().st_uid)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be looked at: {error.strerror}") from error
    except KeyError:
        raise ConfigError(f"{folder} belongs to nobody of this machine; see chown") from None
    return Identity(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)
