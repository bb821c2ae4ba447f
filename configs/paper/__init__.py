"""The experiments of the Asyn2F paper, one file each."""
