"""Make the package importable without `site`, and run the shim.

The folder that holds the package goes last, so that nothing installed beside it can stand in for
a module of the standard library; this directory itself leaves the path for the same reason.
"""

import os
import sys

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _here]
sys.path.append(os.path.dirname(os.path.dirname(_here)))

from chump_orchestrator.shim.owner import main  # noqa: E402 - importable from here on

if __name__ == "__main__":
    # All is written, and its lock is waited for: the interpreter is not taken apart first.
    os._exit(main(sys.argv))
