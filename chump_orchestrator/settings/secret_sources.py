"""Where secrets come from beside the environment: a service's credentials, and a file.

What is told about them never quotes a file: a line that cannot be read may be the secret itself.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import field
from pathlib import Path

from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.settings.layers import Origin, OriginKind, Secret
from chump_orchestrator.settings.passed import is_never_passed

DEFAULT_FILE = ".chump/secrets.env"
"""Read where it is there; any other must be."""

LARGEST_VALUE = 64 * 1024
"""Bytes; a variable of twice that cannot be handed to a program on Linux."""

LARGEST_FILE = 2**20
"""Bytes; a larger one was not written by a person."""

SETTLED_BY_OTHERS = frozenset(
    {"CREDENTIALS_DIRECTORY", "HOME", "LOGNAME", "PATH", "SHELL", "TMPDIR", "USER"}
)
"""Variables that say where and as whom a program runs: no secrets, and not to be overruled."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_QUOTES = ('"', "'")


@dataclass(slots=True)
class Gathered:
    """What the sources hold: `problems` keep the program from running, `notices` are odd."""

    secrets: dict[str, Secret] = field(default_factory=dict)
    problems: list[tuple[Origin, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def take(self, name: str, value: str, origin: Origin, settings: Collection[str]) -> None:
        """Keep a secret, unless its name or its value cannot be one, or a stronger source has it.

        An empty one counts as not given, as an empty variable does.
        """
        if complaint := _name_complaint(name, settings) or _value_complaint(value):
            self.problems.append((origin, complaint))
        elif not value:
            self.notices.append(f"{origin}: it is empty and counts as not given")
        else:
            self.secrets.setdefault(name, Secret(value, origin))


def gather(
    directory: str, file: Path | None, *, is_wanted: bool, settings: Collection[str]
) -> Gathered:
    """Read all sources, the strongest first: credentials in `directory`, then `file`.

    `directory` is empty and `file` is `None` where there is none; the file must be there if
    `is_wanted`. `settings` are variables that stand for settings and are no secrets. Raises
    nothing: what is wrong is in the answer. Blocks for as long as the disk takes.
    """
    gathered = Gathered()
    if directory:
        _take_credentials(gathered, Path(directory), settings)
    if file is not None:
        _take_file(gathered, file, is_wanted=is_wanted, settings=settings)
    return gathered


def variable_of(credential: str) -> str:
    """Return the variable that a credential sets: capitals, `_` in the place of `-` and `.`."""
    return re.sub(r"[-.]", "_", credential).upper()


def _take_credentials(gathered: Gathered, folder: Path, settings: Collection[str]) -> None:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        text = (
            f"CREDENTIALS_DIRECTORY cannot be read ({error.strerror}); it is the service manager's"
            " to set: see LoadCredential= of the unit, or unset it"
        )
        gathered.problems.append((_origin(folder), text))
        return
    files: dict[str, Path] = {}
    for name in names:
        path, variable = folder / name, variable_of(name)
        if variable in files:
            text = f"it stands for {variable}, as {files[variable].name} does; remove one of them"
            gathered.problems.append((_origin(path), text))
            continue
        files[variable] = path
        data = _content(gathered, path, LARGEST_VALUE)
        content = None if data is None else _decoded(gathered, path, data)
        if content is not None:
            # Whoever writes a file with an editor or echo ends it with a line's end.
            value = content.removesuffix("\n").removesuffix("\r")
            gathered.take(variable, value, _origin(path), settings)


def _take_file(
    gathered: Gathered, path: Path, *, is_wanted: bool, settings: Collection[str]
) -> None:
    if not os.path.lexists(path):
        if is_wanted:
            text = f'it is not there; write it, or set secrets.file = "{DEFAULT_FILE}" or ""'
            gathered.problems.append((_origin(path), text))
        return
    data = _content(gathered, path, LARGEST_FILE, is_ours=True)
    content = None if data is None else _decoded(gathered, path, data)
    lines: dict[str, int] = {}
    for number, line in enumerate((content or "").split("\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        origin = _origin(path, number)
        name, equals, value = stripped.removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not _NAME.fullmatch(name):
            complaint = "this is no variable; write NAME=VALUE, or # before a comment"
            gathered.problems.append((origin, complaint))
        elif name in lines:
            complaint = f"{name} stands in line {lines[name]} already; keep one of them"
            gathered.problems.append((origin, complaint))
        elif (bare := _unquoted(value)) is None:
            complaint = f"{name}: a quotation mark has no partner; close it, or leave both out"
            gathered.problems.append((origin, complaint))
        else:
            lines[name] = number
            gathered.take(name, bare, origin, settings)


def _unquoted(value: str) -> str | None:
    """Return a value without the quotation marks around it; `None` where one stands alone."""
    quote = value[:1]
    if quote not in _QUOTES:
        return value
    if len(value) < 2 or not value.endswith(quote):  # noqa: PLR2004 - a pair
        return None
    return value[1:-1]


def _content(gathered: Gathered, path: Path, limit: int, *, is_ours: bool = False) -> bytes | None:
    """Read a file whole; `None`, and a problem, when that cannot or must not be done."""
    try:
        # Not blocking, as it may be a pipe; looked at once it is open, as it may be replaced.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            complaint = file_complaint(path, status) if is_ours else ""
            if not stat.S_ISREG(status.st_mode):
                complaint = "this is no ordinary file; put one in its place"
            data = b"" if complaint else _read(descriptor, limit + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        complaint = f"it cannot be read ({error.strerror}); mend its permissions or its path"
        data = b""
    if len(data) > limit:
        complaint = f"it is larger than {limit // 1024} KiB and so no secret; remove it"
    if complaint:
        gathered.problems.append((_origin(path), complaint))
        return None
    return data


def _read(descriptor: int, limit: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(limit)


def file_complaint(path: Path, status: os.stat_result) -> str:
    """Say why the file of secrets must not be used, or return an empty text."""
    if status.st_uid != os.geteuid():
        return (
            "it belongs to another user, who can read and change it; make it your own"
            f" (chown {os.geteuid()} {path}), or run as its owner"
        )
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        return f"others may read or change it (mode {mode:04o}); run chmod 600 {path}"
    return ""


def _decoded(gathered: Gathered, path: Path, data: bytes) -> str | None:
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        text = "this is not UTF-8; save the file in that encoding"
        gathered.problems.append((_origin(path, line), text))
        return None


def _name_complaint(name: str, settings: Collection[str]) -> str:
    if not _NAME.fullmatch(name):
        return "its name stands for no variable; use letters, digits, - and _, a letter first"
    if name in settings:
        return f"{name} is a setting and no secret; write it into .chump/orchestrator.toml"
    if name in SETTLED_BY_OTHERS or is_never_passed(name):
        return f"{name} is no secret, and nothing could be done with it; remove it"
    return ""


def _value_complaint(value: str) -> str:
    if "\0" in value:
        return "it holds a NUL, which no variable can; write it as text"
    if len(value.encode("utf-8", "surrogatepass")) > LARGEST_VALUE:
        return f"it is longer than {LARGEST_VALUE // 1024} KiB and so no secret; remove it"
    return ""


def _origin(path: Path, line: int | None = None) -> Origin:
    return Origin(OriginKind.FILE, str(path), line)


def values_of(secrets: Mapping[str, Secret]) -> dict[str, str]:
    """Return secrets as variables."""
    return {name: secret.value for name, secret in secrets.items()}
