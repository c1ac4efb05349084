"""The program that owns one agent: its pipes, its logs, its deadline, its death.

Started as `python -I -S <this directory>/__main__.py DIR`, one process per dispatch, so that an
agent outlives the daemon that launched it. The law: standard library only, everything imported at
the start (an upgrade must not change a running shim), a single thread (a parent-death signal
follows the thread that forked), and nothing that is not paid for: there are as many shims as
agents. So `dataclasses`, `typing`, `contextlib`, `ctypes`, `socket`, `selectors` and `subprocess`
stay out; together they cost more than the rest.
"""
