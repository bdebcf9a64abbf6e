"""PolicyClient: one server's policies as methods, for a control loop or a script.

Any number of threads may share a client; every call has its own deadline. A late action is worthless, so nothing is
ever sent twice: a call that fails is reported at once, and the caller sends its next observation. The connection is
kept up underneath: a restarted server is found within about a second, and a connection that went silent is dropped
and made anew within about five.
"""

import time
from types import TracebackType
from typing import Self

import grpc
from numpy.typing import ArrayLike

from kilolayer.channel import CHANNEL_OPTIONS, READY_POLL_S, Endpoint, stream_method, unary_methods
from kilolayer.errors import DeadlineExceeded, KilolayerError, Unavailable
from kilolayer.questions import Answer, Question, Questions
from kilolayer.replies import Action, PolicyDescription, PolicyListing, Score
from kilolayer.stream import PolicyStream


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
        self._endpoint = Endpoint(address, timeout_s=timeout_s)
        self._questions = Questions(policy, version)
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._methods = unary_methods(self._channel)
        self._act_stream = stream_method(self._channel)

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
        """Ask for the action in `state` towards `goal`. Never sent twice.

        Without a seed it is the policy's deterministic action, the one to drive with.

        Args:
            state: [state_dim], or [rows, state_dim] for a block of rows answered together.
            goal: [goal_dim] for every row, or [rows, goal_dim].
            seed: draw the action from the policy's distribution; 64 bits. Equal seeds draw with equal noise, so a loop
                that explores gives a new one each tick. Rows of one block draw independently.
            best_of: of that many draws, at least 1, take the one whose energy, by the critic, is the highest.
            priority: 0 to 3; the server computes calls of a higher one first.
            timeout_s: seconds until DeadlineExceeded; the client's own limit if None.
            sequence: the caller's number for this tick, at most 64 bits; the client counts its calls if None.

        Raises:
            InvalidRequest: the arrays do not fit each other, a number is out of range, or `best_of` has no seed (not
                sent); or the arrays do not fit the policy.
            PolicyNotFound: the server does not have this client's policy or version.
            Overloaded: the server shed the call.
            Unavailable: nobody listens at the address (at once), or the server is starting or draining.
            DeadlineExceeded: no answer in time, or the host of the address cannot be reached.
            KilolayerError: anything else of the tree in `kilolayer.errors`.
            ValueError: the timeout is not a positive number.
        """
        question = self._questions.act(state, goal, seed=seed, best_of=best_of, priority=priority, sequence=sequence)
        return self._ask(question, timeout_s)

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
        """Ask the critic how reachable `goal` is after `action` in `state`. Raises as `act`.

        Args:
            state: [state_dim], or [rows, state_dim].
            action: [action_dim] or [rows, action_dim], one per state, each in [-1, 1].
            goal: [goal_dim] for every row, or [rows, goal_dim].
            priority: as for `act`, and so are the arguments after it.
        """
        question = self._questions.score(state, action, goal=goal, priority=priority, sequence=sequence)
        return self._ask(question, timeout_s)

    def stream(self) -> PolicyStream:
        """A stream for a control loop: `act` on one open gRPC stream. Nothing is sent before its first call."""
        return PolicyStream(self._act_stream, self._endpoint, questions=self._questions)

    def describe(self, *, timeout_s: float | None = None) -> PolicyDescription:
        """What this client's policy expects and promises. Raises as `act`."""
        return self._ask(self._questions.describe(), timeout_s)

    def list_policies(self, *, timeout_s: float | None = None) -> tuple[PolicyListing, ...]:
        """The policies that the server offers, sorted by name. Raises as `act`."""
        return self._ask(self._questions.list_policies(), timeout_s)

    def wait_until_ready(self, timeout_s: float) -> PolicyDescription:
        """Wait, at start, until the server can be asked for this client's policy; return its description.

        Raises:
            DeadlineExceeded: it was not ready within `timeout_s` seconds.
            PolicyNotFound: it is ready, and does not have the policy.
            KilolayerError: anything else of the tree but Unavailable, which is waited for.
            ValueError: the timeout is not a positive number.
        """
        deadline_s = time.monotonic() + self._endpoint.limit_s(timeout_s)
        reason: KilolayerError | None = None
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            try:
                return self._ask(self._questions.describe(), remaining_s, wait_for_connection=True)
            except (Unavailable, DeadlineExceeded) as error:
                reason = error
            self._endpoint.closed.wait(min(READY_POLL_S, max(0.0, deadline_s - time.monotonic())))
        raise self._endpoint.not_ready(timeout_s) from reason

    def close(self) -> None:
        """End the connection and its streams. Calls under way end with ClientClosed, as do later ones.

        Closing twice is harmless.
        """
        self._endpoint.closed.set()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, question: Question[Answer], timeout_s: float | None, *, wait_for_connection: bool = False) -> Answer:
        """The answer to `question`. Without `wait_for_connection`, a refused connection is Unavailable at once."""
        endpoint, name = self._endpoint, question.method
        limit_s = endpoint.limit_s(timeout_s)
        endpoint.require_open(name)
        sent_s = time.perf_counter()
        try:
            reply = self._methods[name](question.request, timeout=limit_s, wait_for_ready=wait_for_connection)
        except grpc.RpcError as error:
            raise endpoint.failure(name, error, limit_s=limit_s) from error
        except ValueError as error:  # what gRPC raises for a channel that another thread closed a moment ago
            if endpoint.closed.is_set():
                raise endpoint.closed_error(name) from error
            raise
        return question.read(reply, time.perf_counter() - sent_s)
