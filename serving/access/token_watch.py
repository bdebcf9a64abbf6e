"""TokenWatch: takes the tokens of a file that changes while the server serves.

Every second it reads the file and compares the content, because a file may be replaced through links, as a volume of
Kubernetes is. A file that is broken or missing changes nothing: the tokens stay as they are, and the log has one line
for that content.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import Counter

from serving.access import token_file
from serving.access.guard import Guard
from serving.access.refusals import Cause, Refusals
from serving.access.tokens import Tokens
from serving.engine.thread_priority import run_in_thread
from serving.errors import StartupError

_LOGGER = logging.getLogger(__name__)

POLL_S = 1.0


class TokenWatch:
    """The tokens of a file.

    Args:
        path: of the file.

    Raises:
        StartupError: the file cannot be read, or breaks a rule.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: bytes | str = token_file.read(path)  # its content, or why it cannot be read
        self.tokens = Tokens(token_file.parse(self._seen, path))
        """Those that are accepted now."""

    def guard(self, counter: Callable[[Cause], Counter], *, clock: Callable[[], float] = time.monotonic) -> Guard:
        """Return what checks calls by these tokens.

        Args:
            counter: returns the counter of the calls that are refused for a cause.
            clock: monotonic seconds.
        """
        return Guard(self.tokens, Refusals(counter, clock=clock), clock=clock)

    async def run(self) -> None:
        """Poll the file every second. Does not return."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                content = await run_in_thread(_read, self._path)
            except RuntimeError as error:  # there is no thread for it
                content = f"--tokens {self._path} cannot be read: {error}"
            self.take(content)

    def take(self, content: bytes | str) -> None:
        """Take the tokens in `content`; a string says why there is none."""
        if content == self._seen:
            return
        self._seen = content
        try:
            if isinstance(content, str):
                raise StartupError(content)
            self.tokens.replace(token_file.parse(content, self._path))
        except StartupError as error:
            _LOGGER.error("the tokens stay as they are: %s", error)
        else:
            _LOGGER.info("the tokens were read again; %d are accepted", len(self.tokens))


def _read(path: Path) -> bytes | str:
    """Return the content of the file, or why it cannot be read."""
    try:
        return token_file.read(path)
    except StartupError as error:
        return str(error)
