"""Work that follows what it was called for, on a thread of its own."""

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial

MOST_WAITING = 16  # parts
_HELD_S = 2.0  # who makes one more, if none is done meanwhile


class Behind:
    """Does a job again and again, once at least after each call.

    The job yields as often as it has done a part of its work. Who makes work waits
    while many parts are still to be done, whoever left them, so that what is to follow
    stays near; but not while the job fails: it is tried again with the next call.
    """

    def __init__(
        self, job: Callable[[], Iterator[None]], count: Callable[[], int]
    ) -> None:
        """
        Args:
          job: what is done.
          count: how many parts are still to be done.
        """
        self._job = job
        self._count = count
        self._changed = threading.Condition()
        self._called = 0
        self._seen = 0  # calls the last job began after
        self._done = 0  # parts
        self._has_failed = False  # and no part has been done since
        self._said = ""  # the last failure that was logged
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def call(self) -> None:
        """Has the job done after this."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="behind", daemon=True
                )
                self._thread.start()
            self._called += 1
            self._changed.notify_all()

    def wait(self) -> None:
        """Returns when the job is near, or fails, or hangs."""
        if self._count() < MOST_WAITING:
            return
        self.call()
        with self._changed:
            done = -1
            while self._count() >= MOST_WAITING and done < self._done:
                done = self._done
                self._changed.wait_for(partial(self._has_moved, done), _HELD_S)

    def _has_moved(self, done: int) -> bool:
        return self._done > done or self._has_failed

    def close(self, patience_s: float) -> bool:
        """Ends the thread when the job has been done for all calls.

        Args:
          patience_s: how long it may take over a part; then it hangs, and is left
            alone.

        Returns:
          Whether it has ended.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        while self._thread is not None and self._thread.is_alive():
            before = self._done
            self._thread.join(patience_s)
            if self._thread.is_alive() and self._done == before:
                return False
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._called > self._seen or self._is_closed
                )
                if self._called == self._seen:
                    return
                self._seen = self._called
            if self._fails():
                with self._changed:
                    self._has_failed = True
                    self._changed.notify_all()

    def _fails(self) -> bool:
        """Does the job; whether it has failed."""
        try:
            for _ in self._job():
                with self._changed:
                    self._has_failed = False
                    self._done += 1
                    self._changed.notify_all()
        except Exception as error:  # nobody else would ever hear of it
            if str(error) != self._said:
                self._said = str(error)
                logging.warning("%s; it will be tried again", error)
            return True
        self._said = ""
        return False
