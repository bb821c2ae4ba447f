"""Errors that a user can fix, and their base class.

Each message states what was found, what is allowed, and what to do.
"""

import sysconfig
import traceback
from pathlib import Path


class Asyn2fError(Exception):
    """Base class of every error that asyn2f raises on purpose."""


class ConfigError(Asyn2fError, ValueError):
    """An invalid config: names the key, its value and the allowed values."""


class DataError(Asyn2fError, ValueError):
    """A data set that is missing or malformed."""


class TaskError(Asyn2fError, ValueError):
    """A task that cannot be trained, evaluated or split."""


class ContractError(Asyn2fError, ValueError):
    """A strategy that does not keep the contract of all strategies."""


class OptimizerError(Asyn2fError, ValueError):
    """An optimizer that cannot be used in local training."""


class ShareError(Asyn2fError, ValueError):
    """Patterns of shared leaves do not fit the model; begins with `share`."""


class RunDirError(Asyn2fError):
    """A folder that cannot be used for a run."""


class StoreError(Asyn2fError):
    """A model store that cannot read or write a version."""


class FencedError(StoreError):
    """A newer server has taken over the store: this one may not write to it again."""


class WriteAheadError(Asyn2fError):
    """A write-ahead file that is malformed or damaged."""


class WireError(Asyn2fError):
    """A message or payload that cannot be decoded."""


class AddressError(Asyn2fError):
    """An address that cannot be used."""


class KeysError(Asyn2fError):
    """Keys that cannot be used or created."""


class PlanError(Asyn2fError, ValueError):
    """An order that lanes cannot execute."""


class TooLargeError(Asyn2fError, ValueError):
    """An execution that does not fit into the memory of the devices."""


class OrderError(Asyn2fError, ValueError):
    """A trace that cannot be executed."""


class IncompleteTraceError(Asyn2fError, ValueError):
    """A trace that lacks the files of some processes."""


class TraceFormatError(Asyn2fError, ValueError):
    """A trace written in a format that this version does not read."""


class DeviceError(Asyn2fError):
    """JAX cannot use the requested devices."""


class DescriptorError(Asyn2fError):
    """A run that needs more file descriptors than a process may open."""


class OutputError(Asyn2fError):
    """Standard output that cannot be written."""


class ExecutionError(Asyn2fError, RuntimeError):
    """A function of a task or a strategy has failed while an order was executed; the
    original error is its cause.

    Attributes:
      stage: `init`, `adopt`, `train`, `merge`, `push`, `signal`, `aggregate` or
        `evaluate`.
      strategy: name of the strategy.
      version: the version that was made, taken in, evaluated, or trained from; None in
        an execution in lanes, where many workers are computed at once.
      worker: its number; None for the server.
      event: index into the order; None outside of it.
    """

    def __init__(
        self,
        stage: str,
        strategy: str,
        version: int | None,
        worker: int | None,
        event: int | None,
        reason: BaseException,
    ) -> None:
        self.stage, self.strategy, self.version = stage, strategy, version
        self.worker, self.event = worker, event
        more = "sim.executor=serial names worker and version"
        where = [
            f"strategy {strategy}",
            more if version is None else f"version {version}",
        ]
        where += [] if worker is None else [f"worker {worker}"]
        where += [] if event is None else [f"event {event}"]
        super().__init__(f"{stage} failed ({', '.join(where)}): {in_one_line(reason)}")


def in_one_line(error: BaseException) -> str:
    """The line of the user's own code that an error is from, and its message.

    >>> in_one_line(ValueError("no such file\\nat all"))
    'ValueError: no such file'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = lines[0]
    if "Traceback" in text:  # of a callback, whose own error comes last
        text = f"{text.partition('Traceback')[0]}{lines[-1]}"
    return f"{_place(error)}{type(error).__name__}: {text[:_LONGEST]}"


_LONGEST = 300


def _place(error: BaseException) -> str:
    """FILE, line N: of the innermost code that is neither installed nor of asyn2f."""
    if isinstance(error, SyntaxError):
        return f"{Path(error.filename or '').name}, line {error.lineno}: "
    others = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    others.append(str(Path(__file__).parent))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*others, "<"))
    ]
    return (
        f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: "
        if frames
        else ""
    )
