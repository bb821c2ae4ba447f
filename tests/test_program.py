"""What the programs have in common."""

import signal

import pytest

from launch import program

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def handlers():
    """Handlers that a test may change."""
    before = [signal.getsignal(number) for number in ALL]
    yield
    for number, handler in zip(ALL, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ALL)
def test_each_wish_to_stop_is_passed_on_by_name(handlers, number):
    """A closed terminal too: a simulation keeps what there is."""
    stops: list[str] = []
    program.stop_on_signals(stops.append)
    signal.raise_signal(number)
    assert stops == [number.name]


def test_under_nohup_a_closed_terminal_is_no_wish_to_stop(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stops: list[str] = []
    program.stop_on_signals(stops.append)
    signal.raise_signal(signal.SIGHUP)
    assert not stops
