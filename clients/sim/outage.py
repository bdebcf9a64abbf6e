"""Say in one line that requests fail, and in another that the server answers again."""

import time
from collections.abc import Callable, Sequence

from kilolayer import Action, KilolayerError, Overloaded, ServerError

Reply = Action | KilolayerError
"""What a robot got for one request: the response, or why there is none."""


class Outage:
    """Whether the server fails to answer, for example because it restarts.

    A late or rejected reply alone is no outage.

    Args:
        say: takes each line.
        clock: seconds that never go back.
    """

    def __init__(self, *, say: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._began_s: float | None = None
        self._missed = 0

    @property
    def is_on(self) -> bool:
        """Whether the last requests failed."""
        return self._began_s is not None

    def after(self, replies: Sequence[Reply]) -> None:
        """Note the replies of one control period."""
        missed = [reply for reply in replies if isinstance(reply, KilolayerError)]
        failures = [error for error in missed if isinstance(error, ServerError) and not isinstance(error, Overloaded)]
        if failures and self._began_s is None:
            self._began_s, self._missed = self._clock(), 0
            self._say(f"{failures[0]} The robots go on without replies, and send a request in every control period.")
        self._missed += len(missed)
        if self._began_s is not None and not failures and len(missed) < len(replies):
            seconds, self._began_s = self._clock() - self._began_s, None
            self._say(f"The server answers again after {seconds:.1f} s; {self._missed:,} requests were missed.")
