"""The programs interpreted by processes, sockets, a store and the wall clock."""
