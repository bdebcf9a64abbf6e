"""AdminActions: runs what an operator asks for, counts it, and logs it with the caller and the outcome.

Each action runs in a task of its own and goes on if its caller leaves: a terminal that is closed leaves no change half
done. A query changes nothing, so it is counted and not logged.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias, TypeVar

from google.protobuf.message import Message
from prometheus_client import Counter

from serving.access.roles import Role
from serving.api.handlers import parse
from serving.api.rpc import Method, RpcContext
from serving.errors import DeploymentError, InvalidRequestError, Reason, ServingError, UnexpectedError, echo
from serving.policies.deployment import Deployment
from serving.policies.status import PolicyStatus

_LOGGER = logging.getLogger(__name__)

USER_KEY = "kilolayer-admin-user"
"""The key of the metadata in which a caller names itself."""
_OK, _STOPPED = "ok", "stopped"  # outcomes, in addition to the reasons of errors
_UNIX = "unix:"
_VERSION = re.compile(r"0|[1-9][0-9]{0,17}")  # as policy.bundle names versions, within an int64

RequestMessage = TypeVar("RequestMessage", bound=Message)
AdminMethod: TypeAlias = Method[[bytes, RpcContext], Awaitable[bytes]]


class Subject(NamedTuple):
    """What an action is about, in its caller's words; empty: the caller names none."""

    policy: str = ""
    version: str = ""
    off: bool = False  # whether it ends something


class _Caller(NamedTuple):
    user: str  # as it names itself; empty: it does not
    peer: str  # as gRPC names it, which has no process or user for the connections of a Unix socket
    token: str  # the name of its token; empty: it needs none


class AdminActions:
    """Makes the methods of the services on the admin address.

    Args:
        deployment: carries the actions out.
        counter: counts them, with the labels `action` and `outcome`.
        clock: monotonic seconds.
    """

    def __init__(
        self, deployment: Deployment, counter: Counter, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.deployment = deployment
        self._counter = counter
        self._clock = clock
        self._running: set[asyncio.Task[bytes | ServingError]] = set()

    def action(
        self,
        name: str,
        request_type: type[RequestMessage],
        *,
        subject: Callable[[RequestMessage], Subject],
        perform: Callable[[RequestMessage], Awaitable[Message]],
    ) -> AdminMethod:
        """Make the method of an action.

        Args:
            name: of the action, a metric label.
            request_type: of its requests.
            subject: what a request is about.
            perform: carries a request out, and returns the reply; may raise a ServingError.
        """

        async def run(raw: bytes, context: RpcContext) -> bytes | ServingError:
            started_s, caller, about = self._clock(), _caller(context), Subject()
            failure: BaseException | None = None
            try:
                request = parse(raw, request_type)
                about = subject(request)
                return (await perform(request)).SerializeToString()
            except (Exception, asyncio.CancelledError) as error:
                failure = error
                if _is_cancelled():
                    raise
                return _for_caller(error)
            finally:
                outcome = self._count(name, failure)
                _log(name, about, caller, outcome=outcome, failure=failure, seconds=self._clock() - started_s)

        async def method(raw: bytes, context: RpcContext) -> bytes:
            running = asyncio.create_task(run(raw, context))
            self._running.add(running)
            running.add_done_callback(self._running.discard)
            reply = await asyncio.shield(running)
            if isinstance(reply, ServingError):
                raise reply
            return reply

        return Method(Role.ADMIN, method)

    def query(
        self, name: str, request_type: type[RequestMessage], *, answer: Callable[[RequestMessage], Message]
    ) -> AdminMethod:
        """Make the method of a query. `name` is a metric label."""

        async def method(raw: bytes, _context: RpcContext) -> bytes:
            failure: BaseException | None = None
            try:
                return answer(parse(raw, request_type)).SerializeToString()
            except Exception as error:
                failure = error
                if not isinstance(error, ServingError):
                    _LOGGER.exception("admin: %s failed", name)
                raise _for_caller(error) from error
            finally:
                self._count(name, failure)

        return Method(Role.ADMIN, method)

    def status(self, policy: str) -> PolicyStatus:
        """Return the status of `policy`; empty: of the only one.

        Raises:
            DeploymentError: there is no such policy.
            InvalidRequestError: `policy` is empty, and there are several.
        """
        policies = {status.policy: status for status in self.deployment.status()}
        there_are = ", ".join(sorted(policies))
        if not policy and len(policies) == 1:
            (policy,) = policies
        if not policy:
            raise InvalidRequestError(f"a policy must be named; there are: {there_are}")
        if policy not in policies:
            raise DeploymentError(Reason.UNKNOWN_POLICY, f"there is no policy {echo(policy)}; there are: {there_are}")
        return policies[policy]

    def named(self, policy: str) -> str:
        """Return `policy`; if it is empty, the only policy of the server, or an empty name if there are several."""
        policies = self.deployment.status()
        return policies[0].policy if not policy and len(policies) == 1 else policy

    def find(self, subject: Subject) -> tuple[str, int]:
        """Return the policy and the version that `subject` names. Errors as of `status`, and if no version can match.

        Raises:
            DeploymentError: the version is not a number.
            InvalidRequestError: there is no version.
        """
        status = self.status(subject.policy)
        if not subject.version:
            raise InvalidRequestError(f"a version must be named; version {status.live} of {status.policy} is live")
        if not _VERSION.fullmatch(subject.version):
            raise DeploymentError(
                Reason.UNKNOWN_VERSION,
                f"policy {status.policy} has no version {echo(subject.version)}; versions are numbers, such as"
                f" {status.live}",
            )
        return status.policy, int(subject.version)

    async def close(self) -> None:
        """Cancel the actions that have not ended, and wait until they have."""
        for running in self._running:
            running.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _count(self, name: str, failure: BaseException | None) -> str:
        """Count an action or a query that has ended, and return its outcome."""
        outcome = _OK
        if isinstance(failure, asyncio.CancelledError) and _is_cancelled():
            outcome = _STOPPED
        elif failure is not None:
            outcome = _for_caller(failure).reason.value
        self._counter.labels(name, outcome).inc()
        return outcome


def _caller(context: RpcContext) -> _Caller:
    peer = "unix" if context.connection.startswith(_UNIX) else context.connection
    return _Caller(context.metadata().get(USER_KEY, ""), peer, context.token)


def _log(
    name: str, about: Subject, caller: _Caller, *, outcome: str, failure: BaseException | None, seconds: float
) -> None:
    """Log an action that has ended. In a JSON log, each fact is a field."""
    subject = "".join(f" {echo(word)}" for word in (about.policy, about.version) if word) + " off" * about.off
    user = echo(caller.user) if caller.user else "an unnamed caller"
    user += f" with the token {caller.token}" if caller.token else ""
    problem = f": {failure}" if isinstance(failure, ServingError) else ""
    _LOGGER.log(
        _level(outcome),
        "admin: %s%s by %s at %s: %s after %.3f s%s",
        *(name, subject, user, caller.peer, outcome, seconds, problem),
        extra={
            "action": name,
            "policy": _plain(about.policy),
            "version": _plain(about.version),
            "off": about.off,
            "user": _plain(caller.user),
            "peer": caller.peer,
            "token_name": caller.token,
            "outcome": outcome,
            "seconds": round(seconds, 6),
        },
        exc_info=failure if outcome == Reason.INTERNAL else None,
    )


def _level(outcome: str) -> int:
    return {_OK: logging.INFO, Reason.INTERNAL: logging.ERROR}.get(outcome, logging.WARNING)


def _plain(text: str) -> str:
    """Return a caller's text as `echo` does, without quotes."""
    return echo(text)[1:-1]


def _for_caller(error: BaseException) -> ServingError:
    """Return the error to send: only our own text reaches a caller."""
    return error if isinstance(error, ServingError) else UnexpectedError()


def _is_cancelled() -> bool:
    """Return whether the current task is being cancelled, and not only something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
