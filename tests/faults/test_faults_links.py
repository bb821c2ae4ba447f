"""Bad links between workers and server: nothing is lost, and all come back."""

import time

import pytest

from asyn2f import trace
from tests.support.patience import Crowd
from tests.support.socket_run import SocketRun

CUT_S, STALL_S = (0.2, 1.5), (0.5, 4.0)
BACK_S = 2.0  # after a partition has healed: promised; half a second is usual


def silences(run: SocketRun) -> list[trace.WorkerLeft]:
    return [e for e in run.events(trace.WorkerLeft) if e.reason == "silent"]


# -------------------------------------------------------------


def lossy_run(folder, seed: int, updates: int) -> None:
    """Eight workers whose every socket is cut and stalled all the time."""
    with SocketRun(folder, seed=seed, workers=8, size=10_000) as run:
        for number in range(8):
            proxy = run.proxy()
            proxy.set(slice_bytes=4_000, bytes_per_s=1e6)
            for link in proxy.each():
                link.misbehave(CUT_S, STALL_S)
            run.start_worker(number, proxy.address, total=updates / 8)
        took_s = run.until(
            f"{updates} updates are settled",
            lambda: all(worker.machine.is_done for worker in run.workers),
        )
        sends = sum(worker.machine.sends for worker in run.workers)
        cuts = sum(link.cuts for proxy in run.proxies for link in proxy.each())
        outcomes = run.finish()
        print(f"{took_s:.1f} s, {cuts} cuts, {sends / updates:.2f} sends per update")
    assert outcomes == {"committed": updates}
    assert cuts > 8
    assert sends <= 3 * updates


def test_a_lossy_link_loses_nothing(tmp_path):
    lossy_run(tmp_path, seed=1, updates=240)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_lossy_link_loses_nothing_of_2400(tmp_path, seed):
    lossy_run(tmp_path, seed, updates=2400)


# -------------------------------------------------------------


def partitioned_run(
    folder, links: list[str], lasts_s: float, refused: bool = False
) -> dict[str, float]:
    """One of two workers is cut off for a while, on these sockets; how long things
    took, in seconds of a machine without other work."""
    took: dict[str, float] = {}
    with Crowd() as crowd, SocketRun(folder, workers=2, size=10_000) as run:
        proxy = run.proxy()
        other = run.start_worker(0, every_s=0.05)
        cut_off = run.start_worker(1, proxy.address, every_s=0.05)
        run.until("both work", lambda: min(w.machine.made for w in run.workers) > 10)
        cut_s, before = time.monotonic(), other.machine.made
        for name in links:
            link = getattr(proxy, name)
            link.refuse(True) if refused else link.set(stalled=True)
        if lasts_s > 5.0 and "control" in links:
            run.until("the server notices", lambda: len(run.server.live()) == 1)
            took["noticed"] = time.monotonic() - cut_s
        run.until("it is over", lambda: time.monotonic() > cut_s + lasts_s)
        healed_s = time.monotonic()
        versions = max(run.server.versions)
        for name in links:
            link = getattr(proxy, name)
            link.refuse(False) if refused else link.set(stalled=False)
        machine = cut_off.machine
        run.until("it is heard again", lambda: machine.pulsed_s > healed_s)
        run.until("the server has it", lambda: len(run.server.live()) == 2)
        took["control"] = time.monotonic() - healed_s
        run.until("it is up to date", lambda: machine.base > versions)
        took["model"] = time.monotonic() - healed_s
        run.until(
            "an update made since is committed",
            lambda: any(
                key.worker == 1 and run.server.arrived_s.get(key, 0) > healed_s
                for key in run.server.newest()
            ),
        )
        took["update"] = time.monotonic() - healed_s
        due = 10 * lasts_s / crowd.factor
        assert other.machine.made > before + due, "the other was disturbed"
        run.finish()
        took = {name: seconds / crowd.factor for name, seconds in took.items()}
        took["silences"] = len(silences(run))
    print({name: round(value, 2) for name, value in took.items()}, crowd)
    return took


ALL = ["control", "model", "update"]
on_these = pytest.mark.parametrize(
    "links", [ALL, ["control"], ["model"], ["update"]], ids="+".join
)


@pytest.mark.parametrize(
    "links", [ALL, ["control"], ["model"], ["update"]], ids="+".join
)
def test_a_short_partition_is_overcome(tmp_path, links):
    took = partitioned_run(tmp_path, links, lasts_s=1.0)
    assert max(took["control"], took["model"], took["update"]) < BACK_S
    assert took["silences"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "links", [ALL, ["control"], ["model"], ["update"]], ids="+".join
)
def test_a_long_partition_is_noticed_and_overcome(tmp_path, links):
    took = partitioned_run(tmp_path, links, lasts_s=10.0)
    assert max(took["control"], took["model"], took["update"]) < BACK_S
    assert took["silences"] == ("control" in links)
    assert took.get("noticed", 0.0) < 5.0


@pytest.mark.slow
def test_a_server_that_could_not_be_reached_for_long_is_found_again(tmp_path):
    """The pause between two attempts to connect may grow, but not for ever."""
    took = partitioned_run(tmp_path, ALL, lasts_s=12.0, refused=True)
    assert max(took["control"], took["model"], took["update"]) < BACK_S
