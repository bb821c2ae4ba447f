"""Executors of an order: serial, and vectorised over lanes and devices."""
