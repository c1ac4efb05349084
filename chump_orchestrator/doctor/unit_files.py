"""Unit files of systemd, and property lists of launchd, read for what a service begins with.

Blocks. Only what is needed here is understood: assignments, lists of them, drop-ins, and the
specifiers that stand for folders.
"""

from __future__ import annotations

import plistlib
import pwd
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers.expat import ExpatError

from chump_orchestrator.core.errors import Refused

LARGEST_FILE = 2**20
"""Bytes; no unit is nearly as long."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_PREFIXES = "-@:+!|"
"""What may stand before a program in `ExecStart=`, and changes how it is started."""


@dataclass(frozen=True, slots=True)
class UnitFile:
    """What a service is started with.

    `environment` is what the file itself sets. `environment_files` are read on top, each with
    whether it must be there. `credentials` are those whose value a plain file or the unit holds,
    and `sealed` the names of those whose value only the service manager can tell. `user` is
    empty where the unit does not say, `descriptors` is `None`. `drop_ins` are files that change
    it.
    """

    path: Path
    program: tuple[str, ...] = ()
    folder: str = ""
    user: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    environment_files: tuple[tuple[str, bool], ...] = ()
    credentials: Mapping[str, str] = field(default_factory=dict)
    sealed: tuple[str, ...] = ()
    descriptors: int | None = None
    drop_ins: tuple[Path, ...] = ()


def read_unit(path: Path, home: str) -> UnitFile:
    """Read a unit of systemd with its drop-ins; `home` is what `%h` stands for.

    Raises `Refused` when one of them cannot be read.
    """
    drop_ins = tuple(sorted(path.with_name(f"{path.name}.d").glob("*.conf")))
    known = {"%%": "%", "%h": home, "%n": path.name, "%N": path.stem}
    found: dict[str, list[str]] = {}
    for file in (path, *drop_ins):
        for key, value in _assignments(_bytes(file).decode("utf-8", "replace")):
            text = re.sub(r"%.", lambda hit: known.get(hit[0], hit[0]), value)
            # An empty assignment takes back those before it.
            found[key] = [*found.get(key, []), text] if text else []

    def last(key: str) -> str:
        return next(reversed(found.get(key, [])), "")

    program = _words(last("ExecStart"))
    variables = [word for value in found.get("Environment", []) for word in _words(value)]
    plain, sealed = _credentials(found)
    limit = last("LimitNOFILE").partition(":")[0]
    return UnitFile(
        path,
        program=(program[0].lstrip(_PREFIXES), *program[1:]) if program else (),
        folder=last("WorkingDirectory").removeprefix("-"),
        user=last("User"),
        environment=dict(word.split("=", 1) for word in variables if "=" in word),
        environment_files=tuple(
            (value.removeprefix("-"), not value.startswith("-"))
            for value in found.get("EnvironmentFile", [])
        ),
        credentials=plain,
        sealed=sealed,
        descriptors=int(limit) if limit.isascii() and limit.isdigit() else None,
        drop_ins=drop_ins,
    )


def read_property_list(path: Path) -> UnitFile:
    """Read a property list of launchd; `Refused` when it cannot be read, or is none."""
    try:
        document = plistlib.loads(_bytes(path))
    except (plistlib.InvalidFileException, ExpatError, ValueError, RecursionError) as error:
        raise Refused(f"{path} is no property list ({error}); install the service anew") from error
    if not isinstance(document, dict):
        raise Refused(f"{path} describes no service; install it anew")

    def table(name: str) -> Mapping[str, object]:
        value = document.get(name)
        return value if isinstance(value, dict) else {}

    descriptors = table("SoftResourceLimits").get("NumberOfFiles")
    arguments = document.get("ProgramArguments")
    return UnitFile(
        path,
        program=tuple(map(str, arguments)) if isinstance(arguments, list) else (),
        folder=str(document.get("WorkingDirectory") or ""),
        user=str(document.get("UserName") or ""),
        environment={k: str(value) for k, value in table("EnvironmentVariables").items()},
        descriptors=descriptors if isinstance(descriptors, int) else None,
    )


def read_environment_file(path: Path) -> dict[str, str]:
    """Read what `EnvironmentFile=` names; `OSError` when it cannot be read."""
    found = {}
    for name, value in _assignments(path.read_text("utf-8", "replace")):
        words = _words(value) if value[:1] in ("'", '"') else [value]
        found[name] = " ".join(words)
    return found


def home_of(user: str) -> str:
    """Return the home of a user by name or number; empty when there is no such user."""
    try:
        return (pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)).pw_dir
    except (KeyError, OverflowError):
        return ""


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_FILE)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}; mend its permissions") from error


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    """Yield names and values; a line that ends with a backslash goes on in the next."""
    whole = ""
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped.startswith(("#", ";")):
            continue
        if stripped.endswith("\\"):
            whole += stripped[:-1] + " "
            continue
        name, equals, value = (whole + stripped).partition("=")
        whole = ""
        if equals and _NAME.fullmatch(name.strip()):
            yield name.strip(), value.strip()


def _words(value: str) -> list[str]:
    try:
        return shlex.split(value)
    except ValueError:  # a quotation mark without a partner
        return value.split()


def _credentials(found: Mapping[str, list[str]]) -> tuple[dict[str, str], tuple[str, ...]]:
    plain: dict[str, str] = {}
    sealed: list[str] = []
    for value in found.get("SetCredential", []):
        name, _, text = value.partition(":")
        plain[name] = text
    for value in found.get("LoadCredential", []):
        name, _, place = value.partition(":")
        content = _plain_file(place)
        if content is None:
            sealed.append(name)
        else:
            plain[name] = content
    for key in ("LoadCredentialEncrypted", "SetCredentialEncrypted", "ImportCredential"):
        sealed += [value.partition(":")[0] for value in found.get(key, [])]
    return plain, tuple(sealed)


def _plain_file(place: str) -> str | None:
    """Return what a file holds, without the last line's end; `None` where that cannot be read."""
    try:
        return Path(place).read_text("utf-8").removesuffix("\n") if place[:1] == "/" else None
    except (OSError, ValueError):
        return None
