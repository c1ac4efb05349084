"""What can be set, what each key may hold, and how a settings file is read.

Nothing here looks at the environment, and nothing here decides which layer counts: `config` does
both.
"""
