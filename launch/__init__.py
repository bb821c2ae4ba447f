"""The programs: `python -m launch.local`, and the parts of a run by hand."""

import os
import signal
import sys

# While `python -m` imports a program there is nothing to lose yet, and Ctrl-C ends it
# without a traceback. `program.run` puts Python's own handler back.
_OWN = signal.default_int_handler
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is _OWN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# A standard stream that is closed leaves its number to the next file that is opened,
# and what libraries say goes into that.
for _number in (0, 1, 2):
    try:
        os.fstat(_number)
    except OSError:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
