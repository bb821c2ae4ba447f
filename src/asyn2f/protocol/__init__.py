"""Both ends of the protocol, without I/O: events in, effects out."""
