"""What whoever keeps the machine awake has to keep to, the real one and its twin."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from chump_orchestrator.adapters.power import Wakefulness
from chump_orchestrator.core import machine
from chump_orchestrator.core.errors import Refused
from tests.daemon.wakeful import ScriptedWakefulness

INHIBIT = """\
#!/bin/sh
while case "$1" in -*) ;; *) false ;; esac; do shift; done
"$@"
"""
DENYING = "#!/bin/sh\necho 'Failed to inhibit: Access denied' >&2\nexit 1\n"


@dataclass
class Tried:
    """One that is tried, whether the machine is held awake by it, and how to have it refused."""

    one: machine.Wakefulness
    is_held: Callable[[], bool]
    deny: Callable[[], None]


def _is_catching() -> bool:
    below = psutil.Process().children(recursive=True)
    return any(p.name() == "cat" and p.status() != psutil.STATUS_ZOMBIE for p in below)


@pytest.fixture(params=["real", "twin"])
async def tried(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Tried]:
    if request.param == "real":
        program = tmp_path / "systemd-inhibit"

        def says(script: str) -> None:
            program.write_text(script)
            program.chmod(0o755)

        says(INHIBIT)
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        found = Tried(Wakefulness(env, "linux"), _is_catching, lambda: says(DENYING))
    else:
        twin = ScriptedWakefulness()
        denial = Refused("Failed to inhibit: Access denied")
        found = Tried(twin, lambda: twin.is_held, lambda: setattr(twin, "trouble", denial))
    yield found
    await found.one.release()


async def test_it_is_held_until_it_is_released(tried: Tried) -> None:
    before = tried.is_held()
    await tried.one.hold("agents run")
    held = tried.is_held()
    await tried.one.release()

    assert (before, held, tried.is_held()) == (False, True, False)


async def test_to_hold_it_again_is_harmless(tried: Tried) -> None:
    await tried.one.hold("agents run")
    await tried.one.hold("agents run")
    held = tried.is_held()
    await tried.one.release()

    assert (held, tried.is_held()) == (True, False)


async def test_to_release_what_is_not_held_is_harmless(tried: Tried) -> None:
    await tried.one.release()
    await tried.one.release()

    assert not tried.is_held()


async def test_it_can_be_held_once_more(tried: Tried) -> None:
    await tried.one.hold("agents run")
    await tried.one.release()
    await tried.one.hold("agents run")

    assert tried.is_held()


async def test_a_refusal_is_told_and_holds_nothing(tried: Tried) -> None:
    tried.deny()

    with pytest.raises(Refused, match="Access denied"):
        await tried.one.hold("agents run")
    assert not tried.is_held()
