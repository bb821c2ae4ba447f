"""The invariants of a simulated run.

Bounds are checked during the run (`bounds_of`), the others after its end
(`problems_of`). Each problem begins with the number of its invariant.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

from asyn2f import trace
from asyn2f.protocol import events as p
from asyn2f.protocol import messages
from asyn2f.trace import artifacts, invariants
from tests.simulation.network import Net, outbox_of
from tests.simulation.node import Node

Key = tuple[str, int]  # session and number
WINDOW = 4  # of a worker: updates without a receipt


def problems_of(net: Net) -> list[str]:
    """The violations of a run that has ended."""
    if net.problems:
        return list(net.problems)
    checks = (_store, _settled_once, _outcomes, _versions, _bases, _observers)
    return [problem for check in checks for problem in check(net)]


def report_of(net: Net) -> invariants.VerificationReport:
    """The verification report by trace and store alone, as of a real run."""
    commits = {}
    for version, _, keys, _, _, incarnation in net.disk.kept.values():
        bases = tuple(net.bases[key] for key in keys)
        shares = (1.0 / max(len(keys), 1),) * len(keys)
        made_of = keys, bases, shares
        commit = artifacts.Commit(version, version - 1, incarnation, *made_of)
        commits[version] = commit
    return invariants.check(
        artifacts.RunArtifacts(
            events=net.traced(),
            commits=commits,
            damaged=frozenset(kept.version for kept in net.disk.rotted),
            before_save=net.world.publish == "before_save",
        )
    )


def _store(net: Net) -> Iterator[str]:
    versions = sorted(net.disk.kept)
    if versions != list(range(len(versions))):
        yield f"I1: versions with gaps: {versions}"
    makers = [net.disk.kept[version].incarnation for version in versions]
    if makers != sorted(makers):
        yield f"I12: an older server wrote after a newer one: {makers}"
    times = Counter(key for kept in net.disk.kept.values() for key in kept.keys)
    yield from (
        f"I2: {key} was committed {n} times" for key, n in times.items() if n > 1
    )
    times = Counter(x for kept in net.disk.kept.values() for x in kept.results)
    yield from (
        f"I2: the result {x} counts {n} times" for x, n in times.items() if n > 1
    )


def _settled_once(net: Net) -> Iterator[str]:
    pushed: set[Key] = set()
    settled: set[Key] = set()
    for _, event in net.trace:
        if isinstance(event, trace.Pushed):
            pushed.add((event.session, event.seq))
        elif isinstance(event, trace.UpdateSettled):
            settled.add((event.session, event.seq))
    committed = net.disk.committed()
    for key in committed.keys() - pushed:
        yield f"I10: {key} is committed and was never produced"
    died = {peer.session for peer in net.peers if not peer.alive}
    # A server repeats the commitments of the one before it, and notes none of them. If
    # the version is damaged later, what workers were told is all that is left of them.
    rotted = net.disk.was_committed()
    lost = {
        (said.session, said.seq)
        for _, said in net.believed
        if said.outcome == "committed"
        and said.incarnation <= rotted.get((said.session, said.seq), -1)
    }
    for session, seq in sorted(pushed - settled - committed.keys() - lost):
        if session not in died:
            yield f"I7: nobody says what became of {session}, {seq}"


def _outcomes(net: Net) -> Iterator[str]:
    """The outcomes that workers were sent, and those that they believed."""
    committed, rotted = net.disk.committed(), net.disk.was_committed()
    told: dict[tuple[int, str, int], messages.UpdateOutcome] = {}
    settled: Counter[tuple[str, str, int]] = Counter()
    for _, node, _, effects in net.log:
        for effect in effects:
            if node.worker == -2 and isinstance(effect, p.RecordEvent):
                noted = effect.event
                if isinstance(noted, trace.UpdateSettled):
                    settled[node.name, noted.session, noted.seq] += 1
            if isinstance(effect, p.Send) and isinstance(
                effect.message, messages.UpdateOutcome
            ):
                said = effect.message
                if told.setdefault(said[:3], said) != said:
                    yield f"I4: one server, two outcomes: {told[said[:3]]}, {said}"
                if said.outcome == "rejected" and not said.reason:
                    yield f"I7: rejected without a reason: {said}"
    yield from (f"I2: settled {n} times: {x}" for x, n in settled.items() if n > 1)
    for said in told.values():
        key, is_committed = (said.session, said.seq), said.outcome == "committed"
        was_there = said.incarnation <= rotted.get(key, -1)
        is_there = committed.get(key) == said.version or was_there
        if is_committed and not is_there:
            yield f"I3: said to be in {said.version}: {said}, is not"
    held = {x: v for v, kept in net.disk.kept.items() for x in kept.results}
    known = net.disk.last_known_to
    lost = {x: known[kept.content] for kept in net.disk.rotted for x in kept.results}
    for node, said in net.believed:
        result = f"{node.name}/{said.seq}"
        was_there = said.incarnation <= lost.get(result, -1)
        is_there = held.get(result) == said.version or was_there
        if said.outcome == "committed" and not is_there:
            yield f"I3: {node.name} believed {said}, but its result is not in it"
        if said.outcome != "committed" and (said.session, said.seq) in committed:
            yield f"I4: {node.name} believed {said}, but it is committed"


def _versions(net: Net) -> Iterator[str]:
    """No version is published that could be lost; each server publishes consecutive
    versions."""
    durable = net.world.publish == "after_save"
    saved = sorted(
        (s, int(content.split(".")[-1])) for content, s in net.saved_s.items()
    )
    place, newest = 0, 0
    announced: dict[str, int] = {}
    for time_s, node, _, effects in net.log:
        if node.worker != -2:
            continue
        while place < len(saved) and saved[place][0] <= time_s:
            newest, place = max(newest, saved[place][1]), place + 1
        for effect in effects:
            match effect:
                case p.Broadcast(_, messages.ModelHeader() as header) if durable:
                    if net.saved_s.get(header.digest, time_s + 1) > time_s:
                        yield f"I6: version {header.version} was sent, and not saved"
                case p.Send(
                    _, messages.HeartbeatAck() | messages.Welcome() as said
                ) if durable:
                    if said.version > newest:
                        yield f"I6: told of version {said.version}, not saved: {said}"
                case p.ReportVersion(version):
                    before = announced.get(node.name, version - 1)
                    announced[node.name] = version
                    if version != before + 1:
                        yield f"I11: {node.name} announced {version} after {before}"
                case p.ReportScore(version, is_best=True) if (
                    durable and version > newest
                ):
                    yield f"I16: the best is {version}, which is not in the store"


def _bases(net: Net) -> Iterator[str]:
    limit = net.world.timing.max_staleness
    for _, event in net.trace:
        if isinstance(event, trace.Aggregated):
            for key, staleness in zip(event.updates, event.staleness, strict=True):
                if staleness < 0 or (limit is not None and staleness > limit):
                    yield f"I13: {key} in {event.version} has staleness {staleness}"


def _observers(net: Net) -> Iterator[str]:
    """A worker never replaces its version by an older one, unless a crash has lost it;
    but another server may publish it again."""
    may_lose = net.world.publish == "before_save" or net.disk.rotted
    newest: dict[str, int] = defaultdict(lambda: -1)
    server: dict[str, int] = {}
    for _, node, event, effects in net.log:
        if node.worker == -2:
            continue
        if isinstance(event, p.FromWire) and isinstance(
            event.message, messages.StopRun
        ):
            said, own = event.message.incarnation, server.get(node.name, 0)
            if said < own and effects:
                yield f"I11: {node.name} of server {own} was stopped by server {said}"
        for effect in effects:
            if isinstance(effect, p.Connect):
                newest[node.name] -= 1 if not may_lose else newest[node.name] + 1
            elif isinstance(effect, p.NotifyAdmitted):
                if effect.incarnation <= server.get(node.name, 0):
                    yield f"I11: {node.name} went back to server {effect.incarnation}"
                server[node.name] = effect.incarnation
            elif isinstance(effect, p.Deliver):
                version = effect.header.version
                if version <= newest[node.name]:
                    yield f"I11: {node.name}: {version} after {newest[node.name]}"
                newest[node.name] = version


def bounds_of(net: Net) -> list[str]:
    """The bounds on memory that are exceeded at this moment (I14)."""
    found = []
    for server in net.servers:
        if server.is_up:
            machine = server.machine
            most = machine._settings.most_open
            sizes = {
                "sessions": (len(list(machine._sessions)), 3 * len(net.peers) + 1),
                "updates held": (len(server.held), (most + 1) * (len(net.peers) + 1)),
            }
            for session in machine._sessions:
                unsettled = machine._ledger.num_open(session.name)
                sizes[f"unsettled of {session.name}"] = (unsettled, most)
            found += _above(server, sizes)
    for peer in net.peers:
        if peer.is_up:
            most = net.server.machine._settings.most_open + WINDOW + 1
            found += _above(peer, {"outbox": (len(outbox_of(peer)), most)})
    return found


def _above(node: Node, sizes: dict[str, tuple[int, int]]) -> list[str]:
    return [
        f"I14: {node.name}: {what}: {size}, at most {most}"
        for what, (size, most) in sizes.items()
        if size > most
    ]
