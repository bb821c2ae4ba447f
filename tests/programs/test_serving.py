"""The addresses at which a resumed server listens."""

import dataclasses
import socket
from types import SimpleNamespace

import pytest

from asyn2f import rundir
from asyn2f.cli import app, server
from asyn2f.config import build
from asyn2f.config.schema import section
from asyn2f.errors import AddressError
from asyn2f.protocol.settings import RuntimeSettings
from asyn2f.transport.base import parse_address
from asyn2f.transport.zmq import ZmqTransport
from tests.support.experiments import config_with, experiment_with

TASK = build.build_task(config_with())


@pytest.fixture
def rival():
    """Listens where the server before it did."""
    transport = ZmqTransport.bind("tcp://127.0.0.1:0", 1000, workers=1)
    yield transport
    transport.close()


def bind(folder, ports, server_timeout_s: float) -> tuple[int, int, int]:
    """The ports of a resumed server; those before were `ports`."""
    address = f"tcp://127.0.0.1:{ports[0]}"
    rundir.write_listening(folder, rundir.Listening(address, ports, "run", ""))
    before = rundir.read_listening(folder)
    settings = section(config_with(), RuntimeSettings)
    settings = dataclasses.replace(settings, server_timeout_s=server_timeout_s)
    transport, _ = server._bind(before, settings, experiment_with(), None, False)
    found = transport.ports()
    transport.close()
    return found


def test_a_server_waits_for_its_ports_as_long_as_peers_try_them(
    tmp_path, rival, monkeypatch
):
    """A hung server frees them when it continues, and peers reconnect."""
    ports, now = rival.ports(), [0.0]

    def sleep(_: float) -> None:
        now[0] += 10.0
        if now[0] == 30.0:
            rival.close()

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(server, "time", clock)
    assert bind(tmp_path, ports, server_timeout_s=60.0) == ports
    assert now == [30.0]


def test_ports_that_do_not_become_free_in_time_are_given_up(tmp_path, rival):
    found = bind(tmp_path, rival.ports(), server_timeout_s=0.2)
    assert not set(found) & set(rival.ports())


def test_a_port_that_is_taken_after_the_check_costs_no_run(
    tmp_path, rival, monkeypatch
):
    """The check finds it free, the server does not: the old run is still there."""
    old = {"config.json": "{}", "summary.json": "precious", "models/3": "parameters"}
    for name, text in old.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    address = f"tcp://127.0.0.1:{rival.ports()[0]}"
    config = config_with(runtime__address=address)
    monkeypatch.setattr(server, "check_free", lambda *_: None)
    request = app.Request(config, tmp_path, overwrite=True)
    claim = server.prepared(request, TASK)
    with pytest.raises(AddressError, match="cannot listen"), claim:
        server.serve(request, print, print)
    assert {name: (tmp_path / name).read_text() for name in old} == old


def test_a_server_on_all_addresses_names_one_of_this_machine(tmp_path):
    settings = section(config_with(runtime__address="tcp://*:0"), RuntimeSettings)
    transport, address = server._bind(
        None, settings, experiment_with(), None, insecure=True
    )
    host, port = parse_address(address)
    assert host == "127.0.0.1"
    with socket.create_connection((host, port)):
        pass
    transport.close()


def test_a_network_interface_is_not_an_address(tmp_path):
    """A server could listen there, but has no address for its peers."""
    _, name = socket.if_nameindex()[0]
    config = config_with(runtime__address=f"tcp://{name}:5570")
    request = app.Request(config, tmp_path / "run", insecure=True)
    claim = server.prepared(request, TASK)
    with pytest.raises(AddressError, match="network interface; give its IP"), claim:
        pass
    assert not (tmp_path / "run").exists()
