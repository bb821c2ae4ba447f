"""What a child of `asyn2f run` does when its launcher has gone."""

import multiprocessing
import signal

import pytest

from asyn2f.cli.children import _Parent


@pytest.fixture
def link(monkeypatch):
    """The launcher's end of a pipe, and the child's side of it; stops are kept."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    here, there = multiprocessing.Pipe()
    stops: list[str] = []
    parent = _Parent(there)
    parent.set_stop_handler(stops.append)
    yield here, parent, stops
    here.close()


def test_an_address_is_waited_for(link):
    here, parent, stops = link
    here.send_bytes(b'{"address": "tcp://127.0.0.1:5570"}')
    assert parent.wait_for_address() == "tcp://127.0.0.1:5570"
    assert not stops


@pytest.mark.parametrize("last_word", [b"", b'{"stop": "no need any more"}'])
def test_a_child_without_an_address_ends(link, last_word):
    here, parent, stops = link
    if last_word:
        here.send_bytes(last_word)
    else:
        here.close()
    with pytest.raises(SystemExit) as ended:
        parent.wait_for_address()
    assert not ended.value.code
    assert len(stops) <= 1


def test_a_peer_lowers_its_priority_once_it_has_joined(link):
    here, parent, _ = link
    lowered: list[str] = []
    parent.lower_priority = lambda: lowered.append("once")
    here.send_bytes(b'{"address": "tcp://127.0.0.1:5570"}')
    parent.wait_for_address()
    assert not lowered
    here.send_bytes(b'{"joined": true}')
    here.send_bytes(b'{"address": "the next message"}')
    parent.wait_for_address()
    assert lowered == ["once"]
