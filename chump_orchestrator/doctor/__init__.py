"""Looks at everything that must be in order for agents to work unattended.

A check looks and changes nothing. What mends something loses nothing by it, says what it did, and
finds nothing to do the second time.
"""
