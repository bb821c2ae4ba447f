"""Simulates the protocol by the thousand: `python -m tests.simulation.sweep`.

A seed is a world (`world.draw_world`) and all chances in it. Each run has faults, then
calm in which everything must come to an end that was begun, then a stop. `--seed=N`
replays one and prints what happened.

About 100 seeds per second and core, of 1.4 events per millisecond (2026-11, one core of
a shared two-core machine; 420 events a seed).
"""

import argparse
import gc
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from asyn2f.protocol import events as p
from tests.simulation.checks import bounds_of, problems_of
from tests.simulation.history import digest, lines_of
from tests.simulation.network import Net, outbox_of
from tests.simulation.world import World, draw_world

SETTLE_S = 20.0  # after the last fault all that is older has its outcome
# After the stop all processes have ended; a peer of a server that was killed does so a
# lease (8 s) after that one's last word, which comes up to 4.3 s late, and a heartbeat.
LEAVE_S = 13.0
_LOOK_S = 1.0
_CHUNK = 100  # seeds


class Outcome(NamedTuple):
    """The result of a seed."""

    net: Net
    problems: list[str]


class Swept(NamedTuple):
    """The results of many seeds: counts of events, and the seeds that failed."""

    seeds: int
    events: int
    count: Counter[str]
    failed: dict[int, str]


def simulate(
    seed: int, world: World | None = None, clocks_s: float | None = None
) -> Outcome:
    """The whole run of a seed, in its own world or another; `clocks_s` as for `Net`."""
    net = Net(seed, world or draw_world(seed), clocks_s)
    calm_s = net.world.calm_s
    problems: list[str] = []
    while net.now < calm_s and not problems:
        net.run(min(net.now + _LOOK_S, calm_s))
        problems = bounds_of(net)
    if not problems and not net.problems:
        problems = _settles(net) or _leaves(net)
    return Outcome(net, problems or problems_of(net))


def sweep(seeds: Iterable[int]) -> Swept:
    """The runs of these seeds, one after the other."""
    num_seeds, events, count, failed = 0, 0, Counter[str](), dict[int, str]()
    gc.disable()  # a third of the time; most of what a run leaves is one big cycle
    gc.freeze()  # the rest of the process has nothing to do with it
    try:
        for seed in seeds:
            try:
                net, problems = simulate(seed)
            except Exception:
                failed[seed] = traceback.format_exc(limit=-3)
                continue
            num_seeds += 1
            events += len(net.log)
            count += net.count
            if problems:
                failed[seed] = problems[0]
            if num_seeds % 50 == 0:
                gc.collect()
    finally:
        gc.unfreeze()
        gc.enable()
    return Swept(num_seeds, events, count, failed)


def _settles(net: Net) -> list[str]:
    """Liveness after the last fault: versions, and outcomes of old updates (I8)."""
    net.faults.end()
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
            said = [f"I8: without an outcome after {SETTLE_S:g} s: {w}" for w in waits]
            stands = f"I8: no version after {max(net.disk.kept)}"
            return said if goes_on else [stands, *said]
        net.faults.replace_missing()
        net.run(net.now + _LOOK_S)
        if problems := bounds_of(net):
            return problems
    return []


def _leaves(net: Net) -> list[str]:
    """After the stop all processes end (I17); hung ones are killed."""
    net.tell(net.server, p.StopRequested("enough"))
    end_s = net.now + LEAVE_S
    while not net.problems:
        if net.server.finish is not None:
            for peer in net.peers:
                if peer.hung:
                    net.faults.kill(peer)
        if net.server.finish and not any(peer.is_up for peer in net.peers):
            return []
        if net.now >= end_s:
            break
        net.run(net.now + _LOOK_S)
    here = [node.name for node in [net.server, *net.peers] if node.is_up]
    return [f"I17: {here} are still there {LEAVE_S:g} s after the stop"]


# ------------------------------------------------------------- the command


def _replay(seed: int) -> None:
    net, problems = simulate(seed)
    print(*lines_of(net), net.world, dict(net.count), sep="\n")
    print(f"seed {seed}: {problems or 'nothing is wrong'}")


def _chunks(first: int, seeds: int) -> Iterator[range]:
    end = first + seeds
    return (range(a, min(a + _CHUNK, end)) for a in range(first, end, _CHUNK))


def _sweep_all(first: int, seeds: int, jobs: int) -> bool:
    """Prints each seed that fails; returns whether none does."""
    start_s, done, events, failures = time.monotonic(), 0, 0, 0
    count: Counter[str] = Counter()
    with ProcessPoolExecutor(jobs) as pool:
        for swept in pool.map(sweep, _chunks(first, seeds)):
            done, events = done + swept.seeds, events + swept.events
            count += swept.count
            failures += len(swept.failed)
            for seed, problem in swept.failed.items():
                print(f"seed {seed}: {problem}", flush=True)
    seconds = time.monotonic() - start_s
    print(f"{done} seeds, {failures} failed; {done / seconds:.0f} seeds/s, ", end="")
    print(f"{events / max(done, 1):.0f} events a seed")
    print(*(f"{number:10} {what}" for what, number in sorted(count.items())), sep="\n")
    return not failures


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, help="replay this one, and print it")
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--digests", action="store_true", help="print each run's digest"
    )
    args = parser.parse_args()
    if args.seed is not None:
        _replay(args.seed)
    elif args.digests:
        for seed in range(args.first, args.first + args.seeds):
            print(seed, digest(simulate(seed).net))
    elif not _sweep_all(args.first, args.seeds, args.jobs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
