"""Standard output that cannot be written: what is lost, and what is not."""

import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest

from asyn2f.cli.process import Output
from asyn2f.errors import OutputError

ROOT = Path(__file__).parents[2]
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
LOST = [errno.ENOSPC, errno.EIO, errno.EPIPE]  # full disk, no terminal, no reader


class Failing(io.StringIO):
    """A stream that cannot be written while `number` is set."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        if self.number:
            raise OSError(self.number, "cannot be written")
        return super().write(text)

    def flush(self) -> None:
        if self.number:
            raise OSError(self.number, "cannot be written")


@pytest.mark.parametrize("number", LOST)
def test_dispensable_output_is_dropped_until_it_can_be_written(number):
    stream = Failing(number)
    output = Output(stream, dispensable=True)
    print("lost", file=output, flush=True)
    stream.number = 0
    print("kept", file=output, flush=True)
    assert stream.getvalue() == "kept\n"
    assert not output.isatty()


@pytest.mark.parametrize("number", LOST)
def test_indispensable_output_is_not_lost_silently(number):
    output = Output(Failing(number), dispensable=False)
    error = BrokenPipeError if number == errno.EPIPE else OutputError
    with pytest.raises(error):
        output.write("a result")
    with pytest.raises(error):
        output.flush()


def program(how: str, outlives: bool, code: int = 3) -> subprocess.CompletedProcess:
    """A program of one line, under a shell that redirects its output like this."""
    source = (
        "import sys, types; from asyn2f.cli import main; "
        "module = sys.modules['asyn2f.cli.line'] = types.ModuleType('line'); "
        f"module.main = lambda: print('a line, and \\u00e9') or {code}; "
        f"main.COMMANDS['line'] = main.Command('line:main', '', '', {outlives}); "
        "main.start('line')"
    )
    command = f'exec "$0" -c "$1" {how}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, source],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)} | ASCII,
    )


@pytest.mark.parametrize("how", [">/dev/full", ">&-", "<&- >&- 2>&-"])
def test_a_program_that_outlives_its_output_ends_with_its_own_code(how):
    done = program(how, outlives=True)
    assert done.returncode == 3, done.stderr
    assert ("No space left" in done.stderr) == (how == ">/dev/full")
    assert "Traceback" not in done.stderr


def test_another_program_fails_when_its_output_is_lost():
    done = program(">/dev/full", outlives=False, code=0)
    assert done.returncode == 2
    assert done.stderr.startswith("error: standard output cannot be written")
    assert len(done.stderr.splitlines()) == 1


def test_characters_outside_the_encoding_are_replaced():
    done = program("", outlives=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout == "a line, and ?\n"
