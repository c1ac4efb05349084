"""The world: one file for each outside system; none knows another."""
