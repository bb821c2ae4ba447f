"""Deterministic simulation of the protocols over a fake network, store and clock.

`Net(seed, world)` binds a server's protocol, workers and an evaluator to a heap of
events. Every delay and fault is drawn from one `random.Random(seed)` or defined by the
world, so a seed is a run. Workers run their real program with drawn durations; a model
is the list of the updates in it. `log` records what happens, and `checks` verifies the
invariants with full knowledge of all processes.
"""
