"""What the daemon orders: the dispatch's `spec.json`, and the secrets that come over a pipe."""

import json
import os
import select
import signal
import time

from chump_orchestrator.shim.files import SPEC, Leave, slurp
from chump_orchestrator.shim.yielding import MOST

_SECRETS_FD = 0
_SECRETS_WAIT_S = 10.0
_SECRETS_LIMIT = 16 * 1024 * 1024
_MAX_GRACE_S = 86_400.0
_MAX_S = 10 * 366 * 86_400.0
_MOST = 2**63 - 1


class Order:
    """Everything that is to be known before an agent is started. Seconds are active seconds."""

    def __init__(self, spec: dict[str, object]) -> None:
        self.dispatch = _text(spec, "dispatch")
        self.argv = tuple(encode(word) for word in _texts(spec, "argv"))
        if not self.argv:
            raise ValueError("argv: empty")
        self.cwd = encode(_text(spec, "cwd"))
        stdin = _text(spec, "stdin")
        if stdin not in ("prompt", "null"):
            raise ValueError(f"stdin: {stdin!r} is neither 'prompt' nor 'null'")
        self.stdin = encode(_text(spec, "prompt")) if stdin == "prompt" else b"/dev/null"
        self.hard_s = seconds(spec, "hard_s")
        self.grace_s = min(seconds(spec, "grace_s"), _MAX_GRACE_S)
        self.stop_signals = tuple(
            signal.Signals[f"SIG{name}"] for name in _texts(spec, "stop_signals")
        )
        self.head_bytes = _count(spec, "head_bytes")
        self.ring_bytes = _count(spec, "ring_bytes")
        # Of a daemon that knows nothing of the following the keys are missing.
        self.cgroup = _text(spec, "cgroup") if spec.get("cgroup") is not None else None
        self.gap = _text(spec, "gap") if "gap" in spec else self.dispatch
        self.managers = tuple(_texts(spec, "managers")) if "managers" in spec else ()
        self.unit = _text(spec, "unit") if "unit" in spec else ""
        self.runtime_s = seconds(spec, "runtime_s") if "runtime_s" in spec else _MAX_S
        self.limits = Limits(spec.get("limits") or {})


class Limits:
    """What an agent may use: `memory` in bytes, `tasks`, `cpu_weight`, those of them that are set.

    Where `are_a_must`, the agent is not to be started if one of them cannot be had. By `nice` it
    yields to others, which can be had everywhere.
    """

    NAMES = ("memory", "tasks", "cpu_weight")

    def __init__(self, given: object) -> None:
        if not isinstance(given, dict):
            raise TypeError("limits: not an object")
        self.values = {
            name: min(_count(given, name), _MOST)
            for name in self.NAMES
            if given.get(name) is not None
        }
        self.are_a_must = given.get("required") is True
        self.nice = min(_count(given, "nice"), MOST) if given.get("nice") is not None else 0


class Secrets:
    """What never lies on a disk: the agent's whole environment, and the values to redact."""

    def __init__(self, told: dict[str, object]) -> None:
        environment = told["env"]
        if not isinstance(environment, dict):
            raise TypeError("env: not an object")
        self.environment = {encode(name): encode(_text(environment, name)) for name in environment}
        self.redact = _texts(told, "redact")


def read_order() -> Order:
    """The order of the dispatch in the working directory; `Leave` when it makes no sense."""
    try:
        return Order(_object(slurp(SPEC)))
    except (ValueError, KeyError, TypeError) as error:
        raise Leave(f"{SPEC}: {type(error).__name__}: {error}") from error


def read_secrets() -> Secrets:
    """Read standard input to its end; `Leave` unless one whole JSON object comes.

    It may begin whenever it likes: whoever launches shims starts them early, and lets go of the
    pipe of one that is not needed. What has begun must come in time.
    """
    data = bytearray(os.read(_SECRETS_FD, 65536))
    if not data:
        raise Leave("nobody gave it anything to do")
    until = time.monotonic() + _SECRETS_WAIT_S
    poll = select.poll()
    poll.register(_SECRETS_FD, select.POLLIN)
    while True:
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise Leave(f"the environment did not come within {_SECRETS_WAIT_S:.0f} s")
        chunk = os.read(_SECRETS_FD, 65536)
        if not chunk:
            break
        data += chunk
        if len(data) > _SECRETS_LIMIT:
            raise Leave(f"the environment is longer than {_SECRETS_LIMIT} bytes")
    try:
        return Secrets(_object(bytes(data)))
    except (ValueError, KeyError, TypeError):
        # Not what was wrong with it: that could quote a secret.
        raise Leave("the environment is not a whole JSON object with env and redact") from None


def seconds(source: dict[str, object], key: str) -> float:
    """A number of seconds, from none to ten years; `ValueError` or `TypeError` otherwise."""
    value = source[key]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{key}: not a number")
    if not 0 <= value <= _MAX_S:  # nor is it NaN
        raise ValueError(f"{key}: not a number of seconds")
    return float(value)


def encode(text: str) -> bytes:
    """As the kernel takes it, whatever the locale of the shim may be."""
    return text.encode("utf-8", "surrogateescape")


def _object(data: bytes) -> dict[str, object]:
    content = json.loads(data)
    if not isinstance(content, dict):
        raise TypeError("not an object")
    return content


def _text(source: dict[str, object], key: str) -> str:
    value = source[key]
    if not isinstance(value, str):
        raise TypeError(f"{key}: not a text")
    return value


def _texts(source: dict[str, object], key: str) -> list[str]:
    value = source[key]
    if not isinstance(value, list):
        raise TypeError(f"{key}: not a list")
    return [_text({key: item}, key) for item in value]


def _count(source: dict[str, object], key: str) -> int:
    value = source[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{key}: not a number of bytes")
    return value
