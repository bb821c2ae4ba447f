"""The programs: `python -m launch.local`, and the parts of a run by hand."""

import signal
import sys

# While `python -m` imports a program there is nothing to lose yet, and Ctrl-C ends it
# without a traceback. `program.run` puts Python's own handler back.
_OWN = signal.default_int_handler
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is _OWN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
