"""An unattended orchestrator for coding agents.

A **gap** is *picked* from the backlog, given a **route**, and becomes a **dispatch**. The
dispatch is *launched* as an **agent**, *supervised* until it has an **outcome**, and leaves a
**reflection**. Read `core` from `gap` to `ports` for what is true, `daemon` for how it stays
alive, and open `adapters` one file at a time, as reference.
"""

__version__ = "0.1.0"
