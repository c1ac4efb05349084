"""Shipping for agents: what they committed is looked through, pushed, and offered for its merge.

Nothing of the repository's own is run with the daemon's credentials: no hook, no filter, and no
configuration that has changed since the daemon began.
"""

from chump_orchestrator.adapters.shipping.gh import GhShipper
from chump_orchestrator.adapters.shipping.push import GitShipper

__all__ = ["GhShipper", "GitShipper"]
