"""The world: one module per outside system, none of which knows another.

The law: an adapter imports `core` and, beneath it, `process`, `git` and `sockets`; never the
daemon, the settings or the command line. It is handed its environment, its clock and its chance.
Whatever goes wrong leaves it as `Unavailable`, `Refused` or `ConfigError`, with what to do next.
"""
