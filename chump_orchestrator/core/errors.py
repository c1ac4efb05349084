"""The three errors that cross a boundary. Everything else is a value, or a bug."""

from __future__ import annotations


class ConfigError(Exception):
    """What the operator wrote cannot be used; the message says where and what would be valid."""


class Unavailable(Exception):
    """The world did not answer, or not in time. Asking again may help."""


class RateLimited(Unavailable):
    """It wants to be asked less often, and will answer again after a while."""


class Refused(Exception):
    """The world answered no. Asking again will not help."""


class MissingProgram(Refused):
    """A program that is needed is not there; the message says which, and to install it."""
