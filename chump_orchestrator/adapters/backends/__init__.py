"""Who does the work: for each kind of agent its command line, and what its output says (A1 to A4).

Nothing is started here, and nothing that an agent prints is believed: numbers and texts are
bounded, and whether something shipped is for the forge to say.
"""

from chump_orchestrator.adapters.backends.answers import pull_in
from chump_orchestrator.adapters.backends.chump_local import CHUMP_VARIABLES, ChumpLocal
from chump_orchestrator.adapters.backends.claude import CLAUDE_VARIABLES, Claude
from chump_orchestrator.adapters.backends.custom import Custom
from chump_orchestrator.adapters.backends.options import BackendOptions

__all__ = [
    "CHUMP_VARIABLES",
    "CLAUDE_VARIABLES",
    "BackendOptions",
    "ChumpLocal",
    "Claude",
    "Custom",
    "pull_in",
]
