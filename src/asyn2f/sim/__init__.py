"""Runs under a virtual clock, and executing the trace of any run."""
