"""Asynchronous federated learning with bidirectional aggregation, in JAX."""

__version__ = "0.1.0"
