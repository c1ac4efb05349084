"""The second fork, after which nobody has the shim for a child of his own.

A program that launches a shim has a child that ends at once, to be reaped like any other. What
it does to children that still run, when it ends or is careless, does not reach the shim.
"""

import os


def detach() -> None:
    """Go on in a child of this process, which itself leaves with 0.

    Session, descriptors and signal handling stay as they are; the process id is another. To be
    called before anything is said, locked or started. `OSError` when there is no process left.
    """
    if os.fork() != 0:
        os._exit(0)
