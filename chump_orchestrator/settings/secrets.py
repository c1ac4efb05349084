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
_SECRET_SHAPE = re.compile(
    r"\b(sk-|gh[opsur]_|github_pat_|glpat-|xox[abprs]-|AKIA|AIza)[\w-]{8,}"
    r"|(?<=Bearer )\S+|(?<=Basic )\S+"
)


def secret_values(variables: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values that must not be shown, longest first: by name, or a URL's password.

    Of a value with several lines, such as a private key, each line is one too.
    """
    found: set[str] = set()
    for name, value in variables.items():
        if _SECRET_NAME.search(name):
            found |= {value, value.strip(), *map(str.strip, value.splitlines())}
        found |= {info.partition(":")[2] or info for info in _USER_INFO.findall(value)}
    return tuple(
        sorted((s for s in found if len(s) >= SHORTEST_SECRET), key=lambda s: (-len(s), s))
    )


def masked_arguments(arguments: tuple[str, ...]) -> Iterator[str]:
    """Yield arguments without the values of options that are named like secrets."""
    hide = False
    for argument in arguments:
        option, has_value, _ = argument.partition("=")
        is_secret = option.startswith("-") and bool(_SECRET_NAME.search(option.replace("-", "_")))
        if hide and not argument.startswith("--"):
            yield MASK
        else:
            yield f"{option}={MASK}" if is_secret and has_value else argument
        hide = is_secret and not has_value


def masked(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` without `secrets`, and without what has the shape of one."""
    text = _SECRET_SHAPE.sub(MASK, _USER_INFO.sub(MASK, text))
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text
