"""How events reach a terminal, a journal or a file; secrets are cut out on the way.

Losing an event is the worst that can happen to it here: none ever harms the one that tells it.
"""

from chump_orchestrator.logs.chain import LEVELS, configure, release
from chump_orchestrator.logs.redaction import REDACTED, SHORTEST_SECRET, Redaction
from chump_orchestrator.logs.streams import RotatingFile

__all__ = [
    "LEVELS",
    "REDACTED",
    "SHORTEST_SECRET",
    "Redaction",
    "RotatingFile",
    "configure",
    "release",
]
