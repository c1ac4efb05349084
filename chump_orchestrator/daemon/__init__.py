"""How it runs: tasks, cancellation, and the one writer of state."""
