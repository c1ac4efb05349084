"""How people ask: one module per family of commands, thin, data on stdout and talk on stderr.

Whatever costs time to import is imported inside the command that needs it.
"""
