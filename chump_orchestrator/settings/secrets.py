"""What must not be shown: which values are secrets, and text without them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

MASK = "***"

SHORTEST_SECRET = 8
"""Characters; shorter values would be struck out of every other line of a log."""

_SECRET_NAME = re.compile(
    r"(TOKEN|KEYS?|SECRETS?|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|COOKIE|AUTH|HEADERS"
    r"|(?<=_)(PASS|PWD|PAT))(_ID|_B64)?$|SECRET_|PASSWORD_(?!STORE)",
    re.IGNORECASE,
)
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_SHAPE = (
    r"\b(sk-|gh[opsur]_|github_pat_|glpat-|xox[abprs]-|AKIA|AIza)[\w-]{8,}"
    r"|(?<=Bearer )\S+|(?<=Basic )\S+"
)


def secret_values(variables: Mapping[str, str], always: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the values that must not be shown, longest first: by name, or a URL's password.

    Those of `always` are secrets whatever they are called. Of a value with several lines, such
    as a private key, each line is one too.
    """
    found: set[str] = set()
    named = [value for name, value in variables.items() if is_secret(name)]
    for value in (*named, *always):
        found |= {value, value.strip(), *map(str.strip, value.splitlines())}
    for value in variables.values():
        found |= {info.partition(":")[2] or info for info in _USER_INFO.findall(value)}
    return tuple(
        sorted((s for s in found if len(s) >= SHORTEST_SECRET), key=lambda s: (-len(s), s))
    )


_ASSIGNED = r"""(?a)(?P<name>[A-Za-z_][\w.-]*)=(?P<value>"[^"]*"|'[^']*'|[^\s"'&;]+)"""
_VARIABLE = r"(?as)(?P<option>-[^=]*=)?(?P<name>[A-Za-z_]\w*)=."


def masked_arguments(arguments: tuple[str, ...]) -> Iterator[str]:
    """Yield arguments without the values of options and variables that are named like secrets.

    Variables are found at the beginning of an argument, behind an option, and in what a shell
    would run: `TOKEN=x`, `--env=TOKEN=x`, `cd there && TOKEN=x agent`.
    """
    hide = False
    for argument in arguments:
        option, has_value, _ = argument.partition("=")
        is_hidden = option.startswith("-") and is_secret(option.replace("-", "_"))
        variable = re.match(_VARIABLE, argument)
        if hide and not argument.startswith("--"):
            yield MASK
        elif is_hidden and has_value:
            yield f"{option}={MASK}"
        elif variable is not None and is_secret(variable["name"]):
            yield argument[: variable.end() - 1] + MASK
        else:
            yield re.sub(_ASSIGNED, _without_value, argument)
        hide = is_hidden and not has_value


def is_secret(name: str) -> bool:
    """Say whether a variable or option is named as secrets are."""
    return _SECRET_NAME.search(name) is not None


def _without_value(assigned: re.Match[str]) -> str:
    name = assigned["name"]
    return f"{name}={MASK}" if is_secret(name.replace("-", "_")) else assigned[0]


def masked(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without `secrets`, and without what has the shape of one."""
    if not text:
        return text
    text = re.sub(_SHAPE, MASK, _USER_INFO.sub(MASK, text))
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text
