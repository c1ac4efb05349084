"""The operator's door: the only code that prints."""
