"""PolicyClient: one server's policies as methods, for a control loop or a script.

Any number of threads may share a client; every call has its own deadline. A late action is worthless, so nothing is
ever sent twice: a call that fails is reported at once, and the caller sends its next observation. The connection is
kept up underneath: a restarted server is found within about a second, and a connection that went silent is dropped
and made anew within about five.
"""

import itertools
import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc
from numpy.typing import ArrayLike

from kilolayer.errors import ClientClosed, DeadlineExceeded, KilolayerError, Unavailable, from_rpc_error
from kilolayer.replies import Action, PolicyDescription, PolicyListing
from kilolayer.v1 import policy_pb2, policy_pb2_grpc
from kilolayer.wire import decode_action, encode_rows

_CHANNEL_OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # what gRPC calls so is the time that one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A server that lost power says nothing, and TCP alone notices after minutes. A keepalive waits behind any ping
    # already under way, whose own limit is a minute, so both limits are set.
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
)
_READY_POLL_S = 0.1  # between two questions to a server that answers, but is still starting


class PolicyClient:
    """A client of the policy server at `address`, for one of its policies.

    Nothing is sent before the first call. Close the client when done, or use it in a `with` statement.

    Args:
        address: `"host:port"`, or another gRPC target such as `"dns:///host:port"` or `"unix:/path"`.
        policy: which policy; empty means the server's default.
        version: which version (a training step); empty means the live one, whichever it is at each call.
        timeout_s: seconds that a call may take when it names no other limit.

    Raises:
        ValueError: the address names no port, or the timeout is not a positive number.
    """

    def __init__(self, address: str, *, policy: str = "", version: str | int = "", timeout_s: float = 1.0) -> None:
        self._address = _check_address(address)
        self._timeout_s = _check_timeout(timeout_s)
        self._policy = policy
        self._version = str(version)
        self._numbers = itertools.count(1)
        self._closed = threading.Event()
        self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub: Any = policy_pb2_grpc.PolicyStub(self._channel)

    def act(
        self, state: ArrayLike, goal: ArrayLike, *, timeout_s: float | None = None, sequence: int | None = None
    ) -> Action:
        """Ask for the action in `state` towards `goal`. Never sent twice.

        Args:
            state: [state_dim], or [rows, state_dim] for a block of rows answered together.
            goal: [goal_dim] for every row, or [rows, goal_dim].
            timeout_s: seconds until DeadlineExceeded; the client's own limit if None.
            sequence: the caller's number for this tick, at most 64 bits; the client counts its calls if None.

        Raises:
            InvalidRequest: the arrays do not fit each other (not sent), or the policy.
            PolicyNotFound: the server does not have this client's policy or version.
            Overloaded: the server shed the call.
            Unavailable: nobody listens at the address (at once), or the server is starting or draining.
            DeadlineExceeded: no answer in time, or the host of the address cannot be reached.
            KilolayerError: anything else of the tree in `kilolayer.errors`.
            ValueError: the timeout is not a positive number.
        """
        number = next(self._numbers) if sequence is None else sequence
        request, leading_axes = encode_rows(state, goal, policy=self._policy, version=self._version, sequence=number)
        sent_s = time.perf_counter()
        reply: policy_pb2.ActResponse = self._call("Act", self._stub.Act, request=request, timeout_s=timeout_s)
        round_trip_s = time.perf_counter() - sent_s
        return Action(
            action=decode_action(reply, number, leading_axes=leading_axes),
            policy=reply.policy,
            version=reply.version,
            sequence=reply.sequence,
            queue_us=reply.queue_us,
            compute_us=reply.compute_us,
            batch_rows=reply.batch_rows,
            round_trip_s=round_trip_s,
        )

    def describe(self, *, timeout_s: float | None = None) -> PolicyDescription:
        """What this client's policy expects and promises. Raises as `act`."""
        return self._describe(timeout_s, wait_for_connection=False)

    def list_policies(self, *, timeout_s: float | None = None) -> tuple[PolicyListing, ...]:
        """The policies that the server offers, sorted by name. Raises as `act`."""
        request = policy_pb2.ListRequest()
        reply: policy_pb2.ListResponse = self._call("List", self._stub.List, request=request, timeout_s=timeout_s)
        return tuple(PolicyListing.from_proto(entry) for entry in reply.policies)

    def wait_until_ready(self, timeout_s: float) -> PolicyDescription:
        """Wait, at start, until the server can be asked for this client's policy; return its description.

        Raises:
            DeadlineExceeded: it was not ready within `timeout_s` seconds.
            PolicyNotFound: it is ready, and does not have the policy.
            KilolayerError: anything else of the tree but Unavailable, which is waited for.
            ValueError: the timeout is not a positive number.
        """
        deadline_s = time.monotonic() + _check_timeout(timeout_s)
        reason: KilolayerError | None = None
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            try:
                return self._describe(remaining_s, wait_for_connection=True)
            except (Unavailable, DeadlineExceeded) as error:
                reason = error
            self._closed.wait(min(_READY_POLL_S, max(0.0, deadline_s - time.monotonic())))
        raise DeadlineExceeded(
            f"The server at {self._address} was not ready within {timeout_s} s. Start it, or check the address.",
            status="DEADLINE_EXCEEDED",
        ) from reason

    def close(self) -> None:
        """End the connection. Calls under way end with ClientClosed, as do later ones; closing twice is harmless."""
        self._closed.set()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _describe(self, timeout_s: float | None, *, wait_for_connection: bool) -> PolicyDescription:
        request = policy_pb2.DescribeRequest(policy=self._policy, version=self._version)
        reply: policy_pb2.DescribeResponse = self._call(
            "Describe",
            self._stub.Describe,
            request=request,
            timeout_s=timeout_s,
            wait_for_connection=wait_for_connection,
        )
        return PolicyDescription.from_proto(reply)

    def _call(
        self,
        name: str,
        method: Callable[..., Any],
        *,
        request: Any,
        timeout_s: float | None,
        wait_for_connection: bool = False,
    ) -> Any:
        """The reply to `request`. Without `wait_for_connection`, a refused connection is Unavailable at once."""
        limit_s = self._timeout_s if timeout_s is None else _check_timeout(timeout_s)
        if self._closed.is_set():
            raise self._closed_error(name)
        try:
            return method(request, timeout=limit_s, wait_for_ready=wait_for_connection)
        except grpc.RpcError as error:
            failure = from_rpc_error(error, call=f"{name} at {self._address} within {limit_s:g} s")
            if self._closed.is_set() and failure.status == grpc.StatusCode.CANCELLED.name:
                raise self._closed_error(name) from error
            raise failure from error
        except ValueError as error:  # what gRPC raises for a channel that another thread closed a moment ago
            if self._closed.is_set():
                raise self._closed_error(name) from error
            raise

    def _closed_error(self, name: str) -> ClientClosed:
        return ClientClosed(
            f"{name} at {self._address} not answered: the client was closed. Make a new PolicyClient.",
            status=grpc.StatusCode.CANCELLED.name,
        )


def _check_address(address: str) -> str:
    if "://" in address and address.startswith(("http:", "https:", "grpc:")):
        raise ValueError(f"address must be host:port without a scheme, such as localhost:50051, not {address!r}")
    if ":" not in address:  # gRPC would take port 443 and report a refused connection
        raise ValueError(f"address must name a port, such as localhost:50051, not {address!r}")
    return address


def _check_timeout(timeout_s: float) -> float:
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise ValueError(f"timeout_s must be a positive number of seconds, such as 0.05, not {timeout_s}")
    return timeout_s
