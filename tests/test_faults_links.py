"""Bad links between workers and server: nothing is lost, and little is sent twice."""

import pytest

from tests.socket_run import SocketRun

CUT_S, STALL_S = (0.2, 1.5), (0.5, 4.0)


def lossy_run(folder, seed: int, updates: int, size: int = 10_000) -> None:
    """Eight workers whose every socket is cut and stalled all the time (R-12)."""
    with SocketRun(folder, seed=seed, workers=8, size=size) as run:
        for number in range(8):
            proxy = run.proxy()
            proxy.set(slice_bytes=4_000, bytes_per_s=1e6)
            for link in proxy.each():
                link.misbehave(CUT_S, STALL_S)
            run.start_worker(number, proxy.address, total=updates / 8)
        took_s = run.until(
            f"{updates} updates are settled",
            lambda: all(worker.machine.is_done for worker in run.workers),
            timeout_s=240.0,
        )
        sends = sum(worker.machine.sends for worker in run.workers)
        uploaded = sum(proxy.update.up_bytes for proxy in run.proxies)
        cuts = sum(link.cuts for proxy in run.proxies for link in proxy.each())
        fates = run.finish()
        print(
            f"{took_s:.1f} s, {cuts} cuts, {sends / updates:.2f} sends per update, "
            f"{uploaded / updates / size:.2f} payloads' bytes per update"
        )
    assert fates == {"committed": updates}
    assert cuts > 8
    assert sends <= 3 * updates


def test_a_lossy_link_loses_nothing(tmp_path):
    lossy_run(tmp_path, seed=1, updates=400)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_lossy_link_loses_nothing_of_2400(tmp_path, seed):
    lossy_run(tmp_path, seed, updates=2400)
