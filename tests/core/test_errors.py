"""The errors that cross a boundary."""

from __future__ import annotations

import pytest

from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable


@pytest.mark.parametrize("kind", [ConfigError, Refused, Unavailable])
def test_each_error_can_be_told_from_the_others_and_from_bugs(kind: type[Exception]) -> None:
    others = {ConfigError, Refused, Unavailable} - {kind}

    assert kind.__mro__[1] is Exception
    assert not any(issubclass(kind, other) for other in others)
