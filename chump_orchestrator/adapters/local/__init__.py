"""Agents on this machine: each under a shim of its own, launched, taken up again, buried.

The law: here agents are asked after, never owned. Only a shim signals its agent; what a dead shim
has left is swept under the lock of its dispatch. Files and processes are looked at in threads.
"""

from chump_orchestrator.adapters.local.agent import ShimAgent
from chump_orchestrator.adapters.local.executor import LocalExecutor

__all__ = ["LocalExecutor", "ShimAgent"]
