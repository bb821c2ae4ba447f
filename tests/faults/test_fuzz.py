"""Every decoder refuses what it cannot read with its own exception, and no other.

The targets are those of `tests/support/fuzz.py`, which runs for as long as one likes.
"""

import random

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyn2f.protocol import messages, wire_format
from asyn2f.protocol.channels import UPDATES, Channel, Frames
from tests.support.fuzz import Fuzz, Target, decode, read_line

NAMES = ("wire", "payload", "model", "trace", "record", "server", "peer")


@pytest.fixture(scope="module")
def fuzz():
    found = Fuzz()
    yield found
    found.close()


@pytest.fixture(scope="module")
def targets(fuzz) -> dict[str, Target]:
    return {target.name: target for target in fuzz.targets()}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_mutated_capture_raises_nothing_undeclared(targets, name, seed):
    target = targets[name]
    target.feed(target.draw(random.Random(seed)))


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner)
    ),
    max_leaves=8,
)
kinds = st.sampled_from([kind.__name__ for kind in messages.Message.__args__])


@given(kinds, st.lists(anything, max_size=18))
@settings(max_examples=80)
def test_whatever_stands_in_a_message_is_read_or_refused(kind, fields):
    decode(msgpack.packb([kind, *fields]))


@given(st.text(max_size=200))
def test_whatever_stands_in_a_line_is_read_or_refused(line):
    read_line(line)


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=20))
def test_whatever_arrives_the_server_goes_on(fuzz, header, payload, topic):
    for channel in (Channel.UPDATE, Channel.CONTROL, Channel.MODEL):
        fuzz._feed_server(Frames(channel, topic, header, payload))
    fuzz._feed_server(Frames(Channel.UPDATE, UPDATES, fuzz._update, payload))


def test_a_target_that_breaks_is_noticed(targets, monkeypatch):
    """The check of the check: with a decoder that raises something else, it fails."""
    monkeypatch.setattr(wire_format, "_problem", lambda *args, **named: 1 / 0)
    target = targets["wire"]
    drawn = [target.draw(random.Random(seed)) for seed in range(100)]
    with pytest.raises(ZeroDivisionError):
        list(map(target.feed, drawn))
