"""The programs as modules of the checkout: see `asyn2f.cli`."""
