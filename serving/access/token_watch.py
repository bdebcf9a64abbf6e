"""TokenWatch: takes the tokens of a file that changes while the server serves.

Every second it reads the file and compares the content, because a file may be replaced through links, as a volume of
Kubernetes is. It takes a content that it has read twice, because a program may be writing the file. A file that is
broken or missing changes nothing: the tokens stay as they are, and the log has one line for that content. A thread
reads and parses the file, so that calls do not wait.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from prometheus_client import Counter

from serving.access import token_file
from serving.access.guard import Guard
from serving.access.refusals import Cause, Refusals
from serving.access.tokens import Token, Tokens
from serving.engine.thread_priority import run_in_thread
from serving.errors import StartupError

_LOGGER = logging.getLogger(__name__)

POLL_S = 1.0

_Content: TypeAlias = bytes | str  # of the file, or why it cannot be read
_Found: TypeAlias = tuple[Token, ...] | str  # the tokens in it, or why there are none


class TokenWatch:
    """The tokens of a file.

    Args:
        path: of the file.

    Raises:
        StartupError: the file cannot be read, or breaks a rule.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: _Content = token_file.read(path)
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
        before = self._seen
        while True:
            await asyncio.sleep(POLL_S)
            before = await self._poll(before)

    async def _poll(self, before: _Content) -> _Content:
        """Return the content of the file. Take it if it is new, and the poll before has read the same."""
        try:
            content, found = await run_in_thread(_load, self._path, before, self._seen)
        except RuntimeError as error:  # there is no thread for it
            content = f"--tokens {self._path} cannot be read: {error}"
            found = content if _is_new(content, before, self._seen) else None
        if found is not None:
            self._take(content, found)
        return content

    def take(self, content: _Content) -> None:
        """Take the tokens in `content`; a string says why there is none."""
        if content != self._seen:
            self._take(content, _parse(content, self._path))

    def _take(self, content: _Content, found: _Found) -> None:
        self._seen = content
        if isinstance(found, str):
            _LOGGER.error("the tokens stay as they are: %s", found)
            return
        self.tokens.replace(found)
        _LOGGER.info("the tokens were read again; %d are accepted", len(self.tokens))


def _load(path: Path, before: _Content, seen: _Content) -> tuple[_Content, _Found | None]:
    """Return the content of the file, and what is found in it if it is new."""
    try:
        content = token_file.read(path)
    except StartupError as error:
        content = str(error)
    return content, _parse(content, path) if _is_new(content, before, seen) else None


def _is_new(content: _Content, before: _Content, seen: _Content) -> bool:
    """Return whether `content` is to be taken: the poll before has read the same, and it is not the one in use."""
    return content == before and content != seen


def _parse(content: _Content, path: Path) -> _Found:
    if isinstance(content, str):
        return content
    try:
        return token_file.parse(content, path)
    except StartupError as error:
        return str(error)
    except Exception as error:  # a bug must not end the polls: a removed token would be accepted until a restart
        return f"--tokens {path} cannot be read: {type(error).__name__}"  # its text could have a token
