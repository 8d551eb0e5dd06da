"""Suggestions: what the measured results say about how they could be run, and what else is worth a measurement. Each rests on rows, or is not made."""
