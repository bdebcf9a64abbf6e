"""When the folder of a policy is polled, with a policy that is never taken up."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.errors import DeploymentError, Reason
from serving.policies import polling
from serving.policies.decisions import PolicyDecisions
from serving.policies.polling import Poller
from tests.serving.sources import policy_source


@pytest.fixture
def policy(tmp_path: Path) -> PolicyDecisions:
    return PolicyDecisions.first(policy_source(tmp_path, name="maze", wanted="latest", follow=True), 1, None)


async def polls_of(policy: PolicyDecisions, during: Iterator[Callable[[Poller], None]]) -> None:
    """Run a poller that does one thing of `during` in each poll, until there are no more."""
    ended = asyncio.Event()

    async def take_up(_: PolicyDecisions) -> None:
        if (act := next(during, None)) is None:
            ended.set()
        else:
            act(poller)

    poller = Poller(take_up)
    running = asyncio.create_task(poller.run(policy))
    async with asyncio.timeout(30):
        await ended.wait()
    running.cancel()


@pytest.mark.parametrize("fails", [False, True])
async def test_a_request_during_a_poll_is_followed_by_another_poll_immediately(
    policy: PolicyDecisions, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    """Also if the poll fails, after which the policy is otherwise left alone."""
    monkeypatch.setattr(polling, "_POLL_S", 3600.0)

    def ask(poller: Poller) -> None:
        poller.poll_now(policy)
        if fails:
            raise DeploymentError(Reason.BUSY, "the bucket cannot be read")

    await polls_of(policy, iter([ask]))
