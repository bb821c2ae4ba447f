"""Runs of the protocol by the thousand: `python -m tests.simulate --seeds=1000000`.

A seed is a world (`tests.net.world.draw_world`) and all chances in it. Each run has
faults, then calm in which everything must come to an end that was begun, then a stop.
`--seed=N` replays one and prints what happened.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from asyn2f.runtime import protocol as p
from tests.net.judge import bounds_of, problems_of
from tests.net.net import Net, outbox_of
from tests.net.world import World, draw_world

SETTLE_S = 20.0  # after the last fault all that is older has its verdict
LEAVE_S = 12.0  # after the stop all processes have ended
_LOOK_S = 1.0


class Outcome(NamedTuple):
    """What came of a seed."""

    net: Net
    problems: list[str]


def simulate(seed: int, world: World | None = None) -> Outcome:
    """The whole run of a seed, in its own world or in another."""
    net = Net(seed, world or draw_world(seed))
    calm_s = net.world.calm_s
    problems: list[str] = []
    while net.now < calm_s and not problems:
        net.run(min(net.now + _LOOK_S, calm_s))
        problems = bounds_of(net)
    if not problems and not net.problems:
        problems = _settles(net) or _leaves(net)
    return Outcome(net, problems or problems_of(net))


def _settles(net: Net) -> list[str]:
    """After the last fault: the run goes on, and what is old gets its verdict (I8)."""
    net.end_faults()
    before = max(net.disk.kept)
    old = {
        peer.name: set(outbox_of(peer))
        for peer in net.peers
        if peer.is_up and not peer.hung
    }
    end_s = net.now + SETTLE_S
    while net.server.finish is None and not net.problems:
        waits = [
            f"{peer.name}: {sorted(old[peer.name] & outbox_of(peer).keys())}"
            for peer in net.peers
            if peer.is_up and old.get(peer.name, set()) & outbox_of(peer).keys()
        ]
        goes_on = max(net.disk.kept) > before + 1
        if goes_on and not waits:
            return []
        if net.now >= end_s:
            said = [f"I8: without a verdict after {SETTLE_S:g} s: {w}" for w in waits]
            stands = f"I8: no version after {max(net.disk.kept)}"
            return said if goes_on else [stands, *said]
        net.replace_missing()
        net.run(net.now + _LOOK_S)
        if problems := bounds_of(net):
            return problems
    return []


def _leaves(net: Net) -> list[str]:
    """After the stop: everybody ends (I17). Who hangs has to be killed."""
    net.tell(net.server, p.StopRequested("enough"))
    end_s = net.now + LEAVE_S
    while net.now < end_s and not net.problems:
        if net.server.finish is not None:
            for peer in net.peers:
                if peer.hung:
                    net.kill(peer)
        if net.server.finish and not any(peer.is_up for peer in net.peers):
            return []
        net.run(net.now + _LOOK_S)
    here = [node.name for node in [net.server, *net.peers] if node.is_up]
    return [f"I17: {here} are still there {LEAVE_S:g} s after the stop"]
