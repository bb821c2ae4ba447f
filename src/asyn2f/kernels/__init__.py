"""Pure array mathematics: no configuration, no I/O."""
