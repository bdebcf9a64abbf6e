"""Poller: polls the folders of policies, and takes up the versions that are wanted.

A folder is polled every second, and as soon as it is asked for. Several are polled independently of each other, so that
one that is slow to read does not delay the others. After a failure, a policy is left alone for half a minute.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable

from serving.errors import DeploymentError
from serving.policies.decisions import PolicyDecisions

_LOGGER = logging.getLogger(__name__)

RETRY_POLLS = 30
"""Polls for which a policy is left alone after the machine lacked something that loading needs."""
_POLL_S = 1.0  # between two polls of a folder


class Poller:
    """Polls the folders of policies that are followed or have a new rule.

    Args:
        take_up: makes the most wanted version of a policy live if it is better than the live one.
    """

    def __init__(self, take_up: Callable[[PolicyDecisions], Awaitable[object]]) -> None:
        self._take_up = take_up
        self._asked = defaultdict[str, asyncio.Event](asyncio.Event)  # by policy

    async def run(self, policy: PolicyDecisions) -> None:
        """Poll the folder of a policy again and again. Does not return."""
        asked = self._asked[policy.name]
        while True:
            asked.clear()  # before the poll, which may have passed what a request during it is about
            await self.poll(policy)
            if asked.is_set():
                policy.retry_in = 0  # a failure of this poll does not delay the one that was asked for
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asked.wait(), _POLL_S)

    def poll_now(self, policy: PolicyDecisions) -> None:
        """Let `run` poll as soon as possible, also a folder that could not be read or loaded."""
        policy.retry_in = 0
        self._asked[policy.name].set()

    async def poll(self, policy: PolicyDecisions) -> None:
        """Poll the folder of a policy once, unless the policy is left alone. A failure is logged."""
        if policy.retry_in:
            policy.retry_in -= 1
        elif policy.following or policy.has_new_rule:
            policy.retry_in = policy.source.pause_polls
            try:
                await self._take_up(policy)
            except DeploymentError as error:
                _LOGGER.warning("%s; trying again later", error)
                policy.retry_in = RETRY_POLLS
            except Exception:  # a bug must not end the following
                _LOGGER.exception("taking up a new version of %s fails; trying again later", policy.name)
                policy.retry_in = RETRY_POLLS
