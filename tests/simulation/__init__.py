"""A whole run in one thread: the protocols over a pretended network, store and clock.

`Net(seed, world)` binds a server's protocol, workers and an evaluator to a heap of
events; every delay and fault is drawn from one `random.Random(seed)` or stands in the
world, so that a seed is a run. Workers run their real program with drawn durations; a
model is the list of the updates in it. What happens is in `log`; `judge` knows
everything, the memory of the machines too, and says what must not be.
"""
