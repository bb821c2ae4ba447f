"""A worker's own state on its disk: what it continues from after a restart."""

import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asyn2f import rundir, serialization
from asyn2f.errors import RunDirError, StoreError, WireError
from asyn2f.store.fencing import sync_folder

_MOST_HEADER_BYTES = 2**22
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, RecursionError)


class Encoded(NamedTuple):
    """A state as bytes."""

    payload: memoryview
    fingerprint: str  # of the shapes
    digest: str  # of the payload
    layout: list[str]  # see `serialization.layout_of`


def encoded(state: Any) -> Encoded:
    """The bytes of a pytree of arrays.

    >>> import numpy as np
    >>> encoded({"steps": np.int32(7)}).payload.nbytes
    4
    """
    payload = serialization.encode_params(state)
    fingerprint = serialization.template_of(state).fingerprint
    digest, layout = serialization.digest(payload), serialization.layout_of(state)
    return Encoded(payload, fingerprint, digest, layout)


class WorkerStateFile:
    """The newest state of one worker: a line of JSON, then the bytes of its arrays.

    A process that is killed while it writes leaves the previous state. While the disk
    is full, the previous state stays and the worker continues.
    """

    def __init__(self, path: Path) -> None:
        """Touches nothing until the first `write`."""
        self._path = path
        self._problem = ""  # the last one that was logged

    def write(self, run: str, state: Encoded) -> None:
        """Replaces the state by one of this run; durable when it returns."""
        header = {"run": run, "fingerprint": state.fingerprint, "digest": state.digest}
        line = json.dumps(header | {"arrays": state.layout})
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            rundir.make_folder(self._path.parent)
            with rundir.new_file(beside, 0o600) as file:
                file.write(line.encode() + b"\n")
                file.write(state.payload)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
            sync_folder(self._path.parent)
        except (OSError, RunDirError) as error:
            self._warn(f"cannot write {self._path}, the previous state stays: {error}")

    def read(self, run: str, like: Any) -> tuple[Any, str] | None:
        """The state that an earlier process of the worker wrote in this run, as
        read-only arrays of NumPy, and its digest; None if there is none. A damaged one,
        or one of other shapes than `like`, is left out with a warning."""
        try:
            fields, payload = self._content()
            if fields["run"] != run:
                return None
            template = serialization.template_of(like)
            if fields["fingerprint"] != template.fingerprint:
                raise ValueError("its arrays have other names, shapes or dtypes")
            if fields["digest"] != serialization.digest(payload):
                raise ValueError("its digest differs")
            return serialization.decode_params(template, payload), fields["digest"]
        except FileNotFoundError:
            return None
        except _UNREADABLE as error:
            problem = f"{type(error).__name__}: {error}"
        except WireError as error:
            problem = str(error)
        self._warn(f"{self._path} cannot be used, the worker begins anew: {problem}")
        return None

    def arrays(self, run: str) -> dict[str, np.ndarray]:
        """The arrays of the state by path, for readers that do not know the model.

        Raises:
          StoreError: the file is missing or damaged, or belongs to another run.
        """
        try:
            header, payload = self._content()
            if header["run"] != run:
                raise StoreError(f"{self._path} is of another run")
            if header["digest"] != serialization.digest(payload):
                raise ValueError("its digest differs")
            return serialization.arrays_by_path(header["arrays"], payload)
        except (*_UNREADABLE, WireError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise StoreError(f"{self._path} cannot be read: {problem}") from None

    def _content(self) -> tuple[dict[str, Any], bytes]:
        with open(self._path, "rb") as file:
            header, payload = file.readline(_MOST_HEADER_BYTES), file.read()
        return json.loads(header), payload

    def _warn(self, problem: str) -> None:
        """Logs a problem, once while it lasts."""
        if problem != self._problem:
            self._problem = problem
            logging.warning("%s", problem)
