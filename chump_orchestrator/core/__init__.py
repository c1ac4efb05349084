"""What is true: frozen data and pure decisions.

Nothing here performs I/O, reads a clock, draws lots or writes a log. Decisions take everything
they need as arguments and return what should be done, with the reason in words.
"""
