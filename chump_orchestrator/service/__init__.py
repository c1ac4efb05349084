"""How the daemon becomes a service of the machine: units filled in, installed, looked at, removed.

Nothing here prints or asks a person. What would be done is a list of steps first, so that it can
be shown instead.
"""
