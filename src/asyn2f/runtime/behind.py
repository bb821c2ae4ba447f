"""Work that follows what it was called for, on a thread of its own."""

import logging
import threading
from collections.abc import Callable, Iterator

MOST_CALLS = 16  # that wait


class Behind:
    """Does a job again and again, once at least after each call.

    The job yields as often as it has done a part of its work, which answers a call. Who
    calls waits while many calls are not answered yet, so that what is to follow stays
    near; but not if the job has failed: it is tried again with the next call.
    """

    def __init__(self, job: Callable[[], Iterator[None]]) -> None:
        self._job = job
        self._changed = threading.Condition()
        self._called = 0
        self._answered = 0
        self._seen = 0  # calls the last job began after
        self._has_failed = False
        self._said = ""  # the last failure that was logged
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def call(self) -> None:
        """Has the job done after this; waits if it is far behind."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="behind", daemon=True
                )
                self._thread.start()
            self._changed.wait_for(
                lambda: self._called - self._answered < MOST_CALLS or self._has_failed
            )
            self._called += 1
            self._has_failed = False
            self._changed.notify_all()

    def close(self, timeout_s: float) -> None:
        """Ends the thread when the job has been done for all calls; or leaves it alone,
        if it hangs."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._called > self._seen or self._is_closed
                )
                if self._called == self._seen:
                    return
                self._seen = self._called
            has_failed = self._do()
            with self._changed:
                self._has_failed = has_failed
                self._answered = max(self._answered, self._seen)
                self._changed.notify_all()

    def _do(self) -> bool:
        """The job; whether it has failed."""
        try:
            for _ in self._job():
                with self._changed:
                    self._answered = min(self._answered + 1, self._called)
                    self._changed.notify_all()
        except Exception as error:  # nobody else would ever hear of it
            if str(error) != self._said:
                self._said = str(error)
                logging.warning("%s; it will be tried again", error)
            return True
        self._said = ""
        return False
