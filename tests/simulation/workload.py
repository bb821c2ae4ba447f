"""What the other threads of the processes do: train, aggregate, save and evaluate."""

from typing import TYPE_CHECKING

from asyn2f import programs, trace
from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from tests.simulation.disk import Kept, StoreFault
from tests.simulation.node import Node
from tests.support.updates import update_info

if TYPE_CHECKING:
    from tests.simulation.network import Net

STEPS_PER_EPOCH = 2
RUN = "run-1"


def made(version: int, content: str, incarnation: int) -> p.VersionAggregated:
    """A version; `content` stands for its arrays."""
    numbers = (10.0, 0.5, 1.0, 0.1)
    sums = ("tree", len(content), content)
    header = messages.ModelHeader(RUN, incarnation, version, *numbers, *sums)
    return p.VersionAggregated(header, content.encode())


class Work:
    """Carries out what is not for the network; `net` keeps the time."""

    def __init__(self, net: "Net") -> None:
        self._net = net

    # ------------------------------------------------------------- a server's

    def check(self, server: Node, check: p.ValidateUpdate) -> None:
        """Decodes an update."""
        net, key = self._net, check.key
        net.bases[key] = check.header.info.base_version
        bad = net.happens("bad_updates")
        if not bad:
            server.held[key] = bytes(check.payload).decode()
        net.tell(server, p.UpdateValidated(key, "w is not finite" if bad else ""))

    def make(self, server: Node, make: p.AggregateVersion) -> None:
        """Computes a version."""
        net, keys = self._net, make.keys
        forgotten = [key for key in keys if key not in server.held]
        if forgotten:
            net.problems.append(f"crash: {forgotten} forgotten before version was made")
            return
        version, own = make.version, server.incarnation
        content, results = f"{own}.{version}", tuple(server.held[key] for key in keys)
        if net.happens("bad_versions"):
            net.tell(server, p.AggregationFailed(version, "w is not finite"))
            return
        bases = [net.bases[key] for key in keys]
        staleness = [version - 1 - base for base in bases]
        shares = [1.0 / len(keys)] * len(keys)
        made_of = [list(key) for key in keys], bases, staleness, shares
        net.note(trace.Aggregated(0.0, version, own, *made_of, 0.1))
        server.unsaved[version] = Kept(version, content, keys, results, {}, own)
        net.tell(server, made(version, content, own))

    def save(self, server: Node, save: p.SaveVersion) -> None:
        """Puts a version into the store; the server hears of it a little later."""
        net, version = self._net, save.version
        kept = server.unsaved[version]._replace(accounting=save.accounting)
        try:
            if net.happens("save_fails"):
                raise StoreFault("the disk does not answer")
            net.disk.save(kept)
        except StoreFault as error:
            fenced = server.incarnation != net.disk.incarnation
            net.count["fenced" if fenced else "save failed"] += 1
            net.tell(server, p.SaveFailed(version, str(error)))
            return
        net.saved_s[kept.content] = net.now
        net.after((0.0, 0.02), server, net.tell, server, p.VersionSaved(version))

    # ------------------------------------------------------------- a worker's

    def wake(self, peer: Node) -> None:
        """Another version is at hand, or the run is over."""
        is_known = peer.newest == peer.parked and peer.newest_from == peer.base_from
        if peer.parked is not None and (not is_known or peer.stopping):
            peer.parked = None
            self._net.after((0.0, 0.0), peer, self._go_on, peer, 0)

    def _go_on(self, peer: Node, steps: int) -> None:
        """The worker has done what its program said; what comes next?"""
        net = self._net
        if peer.hung or not peer.is_up:
            return
        if steps:
            peer.step += steps
            self._report(peer, "training")
            own = peer.worker, net.now, steps, peer.step, peer.base, 0.5, 0.5
            net.note(trace.Trained(0.0, *own))
        signal = net.uniform((0.0, 1.0))
        seen = programs.Seen(steps, peer.newest, signal, peer.stopping)
        try:
            command = peer.program.send(seen)
        except StopIteration:
            net.tell(peer, p.StopRequested("its work is done"))
            return
        steps, seconds = 0, 0.0
        match command:
            case programs.Wait(known):
                peer.parked = known
                self._report(peer, "waiting")
                self.wake(peer)
                return
            case programs.Adopt(version):
                peer.base, peer.base_from = version, peer.newest_from
                peer.start = version
                own = peer.worker, version, peer.step, peer.base_from
                net.note(trace.Adopted(0.0, *own))
            case programs.Merge(version):
                own = peer.worker, version, peer.base, peer.step, 0.5, 0.5
                peer.base, peer.base_from = version, peer.newest_from
                net.note(trace.Merged(0.0, *own, peer.base_from))
            case programs.Train(wanted, known):
                steps = 1 if known is not None else wanted
                seconds = steps * net.uniform(net.world.step_s)
            case programs.Push():
                self._push(peer)
        net.after((seconds, seconds), peer, self._go_on, peer, steps)

    def _report(self, peer: Node, state: str) -> None:
        progress = messages.NO_PROGRESS._replace(state=state, base_version=peer.base)
        self._net.tell(peer, progress)

    def _push(self, peer: Node) -> None:
        number = peer.machine._link.hello.first + peer.pushes
        net, result = self._net, f"{peer.name}/{number}"
        peer.pushes += 1
        info = update_info(peer.base, peer.start, peer.step)
        payload, now = result.encode(), net.now + peer.clock_s
        peer.start = peer.base
        net.tell(peer, p.UpdateReady(info, "tree", len(result), result, payload, now))
