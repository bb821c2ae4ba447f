"""Metrics, the live view and the report of a run."""
