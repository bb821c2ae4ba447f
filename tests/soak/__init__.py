"""Faults that take minutes or hours: `python -m tests.soak NAME`; see `__main__`."""
