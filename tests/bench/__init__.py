"""One question per file; each prints a line of JSON. Not part of the test suite."""
