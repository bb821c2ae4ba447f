"""Faults that take minutes or hours: `python -m tests.night NAME`; see `__main__`."""
