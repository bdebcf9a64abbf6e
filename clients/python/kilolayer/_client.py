"""PolicyClient: the policies of one server as methods, for a control loop or a script.

Any number of threads may share a client. Every call has its own deadline. No request is sent twice, because an action
for an old observation is useless: a call that fails raises immediately, and the caller sends its next observation. The
client reconnects to a restarted server within about 1 s. It replaces a connection that no longer answers within about
5 s. After a fork, the child opens a connection of its own.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

import grpc
from numpy.typing import ArrayLike

from kilolayer._access import TlsSetting
from kilolayer._channel import READY_POLL_S, Endpoint
from kilolayer._connection import Connection
from kilolayer._reaper import reaper
from kilolayer._requests import Request, RequestFactory, Response
from kilolayer._responses import Action, PolicyDescription, PolicyListing, ReportStatus, Score
from kilolayer._stream import PolicyStream
from kilolayer._stream_connection import StreamConnections
from kilolayer._token import TokenSource
from kilolayer.errors import DeadlineExceeded, KilolayerError, Unavailable

if TYPE_CHECKING:
    from typing_extensions import Self


class PolicyClient:
    """A client for one policy of the server at `address`.

    It sends nothing before the first call. Close it when done, or use it in a `with` statement. A client that is
    dropped while it is open is closed, with a ResourceWarning. To use two policies of one server, make two clients.

    Args:
        address: `"host:port"`, or `"unix:/path"` for a Unix socket. Several servers are one name that stands for all
            of them, or IP addresses separated by commas: `"10.0.0.5:50051,10.0.0.6:50051"`. Calls then go to them in
            turn, and a server that is down or not ready gets none.
        policy: name of the policy, one of `list_policies()`; empty means the server's default.
        version: a training step as a string, such as `"2000"`; an int is converted. Replies give it as a string.
            Empty means the version that is live at each call.
        timeout_s: timeout in seconds of a call that has none of its own.
        robot_id: a name of the robot, sent with every request for actions; at most 128 bytes in UTF-8. Empty means
            none. A canary gives a robot with an id the same version, whatever connection it uses.
        tls: a `Tls` with files, or True for `Tls()`, which trusts the public authorities that gRPC comes with. False
            means plain text, and None what the variables `KILOLAYER_TLS`, `KILOLAYER_TLS_CA`,
            `KILOLAYER_TLS_CLIENT_CERT` and `KILOLAYER_TLS_CLIENT_KEY` say: without any, and for a Unix socket, plain
            text.
        token: the bearer token of this robot or program as a string, or a `pathlib.Path` of a file that holds it. The
            file is read again when it changes; if it is missing or has no token, the client continues with the one
            that it read before. None means `KILOLAYER_TOKEN_FILE` or `KILOLAYER_TOKEN`, if set.
        server_name: the name that the server's certificate must have. None means `KILOLAYER_SERVER_NAME`, or the host
            of the address.

    Raises:
        ValueError: an argument or a variable is wrong, a file cannot be used, or a token would be sent over a network
            in plain text. The message says what would work.
    """

    def __init__(
        self,
        address: str,
        *,
        policy: str = "",
        version: str | int = "",
        timeout_s: float = 1.0,
        robot_id: str = "",
        tls: TlsSetting = None,
        token: TokenSource | None = None,
        server_name: str | None = None,
    ) -> None:
        self._endpoint = Endpoint(address, timeout_s=timeout_s, tls=tls, token=token, server_name=server_name)
        self._requests = RequestFactory(policy, version, robot_id=robot_id)
        self._connection = Connection(self._endpoint)
        reaper.watch(self, self._connection, name=f"a PolicyClient of {self._endpoint.address}")

    def act(
        self,
        state: ArrayLike,
        goal: ArrayLike,
        *,
        seed: int | None = None,
        best_of: int | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        sequence: int | None = None,
    ) -> Action:
        """Return the action in `state` towards `goal`. The request is never sent twice.

        Without a seed it is the policy's deterministic action, which is the one to control a robot with. A policy whose
        `describe().action_chunk` is above 1 gives that many actions, in `Action.chunk`: execute all of them, one per
        control period, then call `act` again.

        Args:
            state: [state_dim], or [rows, state_dim] for a block of rows answered together.
            goal: [goal_dim] for every row, or [rows, goal_dim].
            seed: sample the action from the policy's distribution; 0 to 2**64 - 1. Equal seeds give equal noise, so
                use a new seed each tick to explore. The rows of a block are sampled independently.
            best_of: sample this many actions, at least 1, and return the one with the highest energy by the critic.
                Requires a seed, and a policy with a critic.
            priority: 0 to 3; the server computes calls of higher priority first.
            timeout_s: seconds until DeadlineExceeded; None means the client's timeout.
            sequence: the caller's number for this tick, 0 to 2**64 - 1; None means the client's count of calls.

        Raises:
            InvalidRequest: the arrays do not fit each other or the policy, a number is out of range, or `best_of` has
                no seed.
            PolicyNotFound: the server does not have this client's policy or version.
            NotSupported: `best_of` with a policy that has no critic; `describe().critic` is then "none".
            Overloaded: the server rejected the call because of its load.
            Unavailable: no server listens at the address (raised immediately), or it is starting or draining.
            DeadlineExceeded: no reply in time, or the host of the address cannot be reached. A late reply is dropped.
            KilolayerError: any other exception in `kilolayer.errors`.
            ValueError: the timeout is not a positive number.
            RuntimeError: this process was forked from one that used gRPC, and gRPC does not work in it.
        """
        request = self._requests.act(state, goal, seed=seed, best_of=best_of, priority=priority, sequence=sequence)
        return self._call(request, timeout_s)

    def score(
        self,
        state: ArrayLike,
        action: ArrayLike,
        *,
        goal: ArrayLike,
        priority: int = 0,
        timeout_s: float | None = None,
        sequence: int | None = None,
    ) -> Score:
        """Return the critic's energy: how near `goal` is after `action` in `state`.

        Raises as `act`; NotSupported if the policy has no critic.

        Args:
            state: [state_dim], or [rows, state_dim].
            action: [action_dim] or [rows, action_dim], one per state, each value in [-1, 1]. If the policy's
                `action_chunk` is above 1, all actions of a chunk: [action_chunk, action_dim] or
                [rows, action_chunk, action_dim], as in `Action.chunk`.
            goal: [goal_dim] for every row, or [rows, goal_dim].
            priority: as for `act`.
            timeout_s: as for `act`.
            sequence: as for `act`.
        """
        request = self._requests.score(state, action, goal=goal, priority=priority, sequence=sequence)
        return self._call(request, timeout_s)

    def report(
        self,
        episode: int,
        *,
        version: str | int,
        reached: bool,
        time_at_goal: int = 0,
        timeout_s: float | None = None,
    ) -> ReportStatus:
        """Tell the server how an episode of this client's robot ended, and return whether the report counts.

        The server counts successes by version, and a canary may decide by them. A report may be sent again, for example
        after DeadlineExceeded: it counts once.

        Args:
            episode: the robot's number for the episode, 0 to 2**64 - 1, above those of its earlier episodes, also after
                the robot restarts: a counter that is stored, or Unix time if the clock is never set back.
            version: `Action.version` of the episode's last action.
            reached: whether the robot was within the success radius at the end.
            time_at_goal: number of control periods within the success radius.
            timeout_s: as for `act`.

        Raises:
            InvalidRequest: the client has no `robot_id`, or a number is out of range.
            KilolayerError: as `act`.
        """
        request = self._requests.report(episode, version=version, reached=reached, time_at_goal=time_at_goal)
        return self._call(request, timeout_s)

    def stream(self) -> PolicyStream:
        """Return a stream for a control loop: `act` over one open gRPC stream. Its first call opens it."""
        connections = StreamConnections(self._connection, self._endpoint)
        return PolicyStream(self, connections, endpoint=self._endpoint, requests=self._requests)

    def describe(self, *, timeout_s: float | None = None) -> PolicyDescription:
        """Return the sizes, names and limits of this client's policy. Raises as `act`."""
        return self._call(self._requests.describe(), timeout_s)

    def list_policies(self, *, timeout_s: float | None = None) -> tuple[PolicyListing, ...]:
        """Return the policies that the server has, sorted by name. Raises as `act`."""
        return self._call(self._requests.list_policies(), timeout_s)

    def wait_until_ready(self, timeout_s: float) -> PolicyDescription:
        """Wait until the server is ready, and return the description of this client's policy.

        Raises:
            DeadlineExceeded: the server was not ready within `timeout_s` seconds. The message says why the last attempt
                failed.
            PolicyNotFound: the server is ready and does not have the policy.
            KilolayerError: any other exception in `kilolayer.errors` except Unavailable.
            ValueError: the timeout is not a positive number.
        """
        deadline_s = time.monotonic() + self._endpoint.timeout_s(timeout_s)
        last_error: KilolayerError | None = None
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            try:
                return self._call(self._requests.describe(), remaining_s)
            except Unavailable as error:
                last_error = error
            except DeadlineExceeded as error:
                last_error = last_error or error
            self._endpoint.closed.wait(min(READY_POLL_S, max(0.0, deadline_s - time.monotonic())))
        raise self._endpoint.not_ready(timeout_s, last_error) from last_error

    def close(self) -> None:
        """Close the connection and its streams. Pending and later calls raise ClientClosed.

        Closing twice has no effect.
        """
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, request: Request[Response], timeout_s: float | None) -> Response:
        """Send `request` and return its response."""
        endpoint, method = self._endpoint, request.method
        limit_s = endpoint.timeout_s(timeout_s)
        sent_s = time.perf_counter()
        endpoint.require_open(method)
        channel = self._connection.channel(method)
        try:
            remaining_s = max(0.0, limit_s - (time.perf_counter() - sent_s))  # opening a channel takes time
            reply = channel.methods[method](request.message, timeout=remaining_s, wait_for_ready=False)
        except grpc.RpcError as error:
            raise endpoint.rpc_failure(method, error, request=request.message, timeout_s=limit_s) from error
        except ValueError as error:  # gRPC raises it if another thread has just closed the channel
            if endpoint.closed.is_set():
                raise endpoint.client_closed(method) from error
            raise
        response = request.read(reply, time.perf_counter() - sent_s)
        if time.perf_counter() - sent_s > limit_s:  # this thread was late to take the reply, or to read it
            raise endpoint.late_reply(method, request=request.message, timeout_s=limit_s)
        return response
