"""Simulation under a virtual clock, and replay of the trace of any run."""
