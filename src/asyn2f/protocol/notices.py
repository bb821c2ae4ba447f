"""What a person is told in the log, and not more often than is good."""

_AGAIN_S = 60.0
_MOST = 32  # different texts within that time


class Notices:
    """Lets each text pass once a minute, and few different ones.

    >>> notices = Notices()
    >>> [notices.are_new("no", now) for now in (0.0, 59.0, 60.0)]
    [True, False, True]
    """

    def __init__(self) -> None:
        self._said_s: dict[str, float] = {}  # in the order of their times

    def are_new(self, text: str, now: float) -> bool:
        """Whether to say it now."""
        for old in [x for x, at in self._said_s.items() if now >= at + _AGAIN_S]:
            del self._said_s[old]
        if text in self._said_s or len(self._said_s) >= _MOST:
            return False
        self._said_s[text] = now
        return True
