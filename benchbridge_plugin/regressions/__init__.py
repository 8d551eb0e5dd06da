"""Regressions: histories of configurations, and where they got worse for good."""
