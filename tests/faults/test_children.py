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
def test_who_waits_for_an_address_that_will_not_come_ends(link, last_word):
    here, parent, stops = link
    if last_word:
        here.send_bytes(last_word)
    else:
        here.close()
    with pytest.raises(SystemExit) as ended:
        parent.wait_for_address()
    assert not ended.value.code
    assert len(stops) <= 1


def test_who_has_joined_gives_way_and_not_before(link):
    here, parent, _ = link
    gave_way: list[str] = []
    parent.lower_priority = lambda: gave_way.append("once")
    here.send_bytes(b'{"address": "tcp://127.0.0.1:5570"}')
    parent.wait_for_address()
    assert not gave_way
    here.send_bytes(b'{"joined": true}')
    here.send_bytes(b'{"address": "the next message"}')
    parent.wait_for_address()
    assert gave_way == ["once"]
