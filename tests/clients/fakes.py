"""A gRPC server in this process with replies worked out by hand, a connection that can go silent, a plain client."""
# ruff: noqa: N802 - the servicer's methods are named by the protocol

from __future__ import annotations  # for Python 3.9

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np

from kilolayer import Action, DeadlineExceeded
from kilolayer.v1 import policy_pb2, policy_pb2_grpc

STATE_DIM, GOAL_DIM, ACTION_DIM = 3, 2, 2


class FakePolicy(policy_pb2_grpc.PolicyServicer):
    """Answers action = 2 * state[:2] - goal and energy = action_0 - goal_0, changed by `on_...`.

    `failure` ends every call, and every stream at its next request; `reason` goes with it.
    """

    def __init__(self) -> None:
        self.acts: list[policy_pb2.ActRequest] = []
        self.scores: list[policy_pb2.ScoreRequest] = []
        self.reports: list[policy_pb2.ReportRequest] = []
        self.report_status = policy_pb2.REPORT_STATUS_ACCEPTED
        self.streams = 0
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self.reason = ""
        self.on_act: Callable[[policy_pb2.ActResponse], Any] = lambda _: None
        self.on_score: Callable[[policy_pb2.ScoreResponse], Any] = lambda _: None
        self.act_arrived = threading.Event()
        self.act_ended = threading.Event()  # replied, or abandoned by the caller
        self.describe_arrived = threading.Event()
        self.remaining_s: list[float | None] = []  # of each Act outside a stream, as the caller's deadline says

    def Act(self, request: policy_pb2.ActRequest | None, context: grpc.ServicerContext) -> policy_pb2.ActResponse:
        context.add_callback(self.act_ended.set)
        self.remaining_s.append(context.time_remaining())
        if request is None:  # grpcio 1.59: the call ended before its message came
            context.abort(grpc.StatusCode.CANCELLED, "no message")
        return self._act(request, context)

    def ActStream(
        self, request_iterator: Iterator[policy_pb2.ActRequest], context: grpc.ServicerContext
    ) -> Iterator[policy_pb2.ActResponse]:
        self.streams += 1
        for request in request_iterator:
            yield self._act(request, context)

    def Score(self, request: policy_pb2.ScoreRequest, context: grpc.ServicerContext) -> policy_pb2.ScoreResponse:
        self.scores.append(request)
        self._maybe_fail(context)
        action = np.array(request.action).reshape(-1, ACTION_DIM)
        goal = np.array(request.goal).reshape(-1, GOAL_DIM)
        reply = policy_pb2.ScoreResponse(
            energy=(action[:, 0] - goal[:, 0]).tolist(),
            policy=request.policy or "maze",
            version=request.version or "200",
            sequence=request.sequence,
            queue_us=33,
            compute_us=44,
            batch_rows=len(action) + 5,
        )
        self.on_score(reply)
        return reply

    def Report(self, request: policy_pb2.ReportRequest, context: grpc.ServicerContext) -> policy_pb2.ReportResponse:
        self.reports.append(request)
        self._maybe_fail(context)
        return policy_pb2.ReportResponse(status=self.report_status)

    def Describe(
        self, request: policy_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> policy_pb2.DescribeResponse:
        self.describe_arrived.set()
        self._maybe_fail(context)
        spec = policy_pb2.PolicySpec(
            name=request.policy or "maze",
            environment="point_u_maze",
            state_dim=3,
            goal_dim=2,
            action_dim=2,
            state_names=["x [m]", "y [m]", "v [m/s]"],
            goal_names=["x [m]", "y [m]"],
            action_names=["fx [N]", "fy [N]"],
            action_low=[-2, -3],
            action_high=[2, 3],
            control_period_s=0.05,
            success_radius=0.5,
            actor_depth=16,
            actor_width=256,
            critic_depth=32,
            critic_width=128,
            representation_dim=64,
            energy="dot",
            activation="relu",
            layer_norm=True,
            residual=False,
            actuator_kind=["torque", "other"],
            rest_action=[0, 0.5],
            action_meaning=["absolute", "increment"],
            max_action_change=[0.25, 2],
            action_chunk=1,
            critic="energy",
            normalize_observations=True,
            normalization_mean=[0, 1, 2],
            normalization_std=[1, 2, 4],
            seen_mean=[0, 0.5, 1],
            seen_std=[1, 0, 2],
            seen_low=[-1, 0.5, -8],
            seen_high=[1, 0.5, 8],
            state_quaternions=[],
            goal_quaternions=[],
        )
        return policy_pb2.DescribeResponse(spec=spec, version="200", manifest_sha256="ab12", max_rows=1024)

    def List(self, request: policy_pb2.ListRequest, context: grpc.ServicerContext) -> policy_pb2.ListResponse:
        self._maybe_fail(context)
        ant = policy_pb2.PolicyEntry(policy="ant", versions=["7"], live_version="7")
        maze = policy_pb2.PolicyEntry(policy="maze", versions=["100", "200"], live_version="200", is_default=True)
        return policy_pb2.ListResponse(policies=[ant, maze])

    def _act(self, request: policy_pb2.ActRequest, context: grpc.ServicerContext) -> policy_pb2.ActResponse:
        self.acts.append(request)
        self.act_arrived.set()
        self._maybe_fail(context)
        state = np.array(request.state).reshape(-1, STATE_DIM)
        goal = np.array(request.goal).reshape(-1, GOAL_DIM)
        reply = policy_pb2.ActResponse(
            action=(2 * state[:, :ACTION_DIM] - goal).ravel().tolist(),
            policy=request.policy or "maze",
            version=request.version or "200",
            sequence=request.sequence,
            queue_us=11,
            compute_us=22,
            batch_rows=len(state) + 5,
        )
        self.on_act(reply)
        return reply

    def _maybe_fail(self, context: grpc.ServicerContext) -> None:
        if self.failure is not None:
            if self.reason:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", "-1"), ("kilolayer-reason", self.reason)))
            context.abort(*self.failure)


def start_server(
    fake: FakePolicy, port: int = 0, *, credentials: grpc.ServerCredentials | None = None, host: str = "127.0.0.1"
) -> tuple[grpc.Server, int]:
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    policy_pb2_grpc.add_PolicyServicer_to_server(fake, server)
    if credentials is None:
        port = server.add_insecure_port(f"{host}:{port}")
    else:
        port = server.add_secure_port(f"{host}:{port}", credentials)
    server.start()
    return server, port


def free_port() -> int:
    """Return a port that nothing listens on. Systems give none of this range to a program that asks for any port."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def closed_address() -> Generator[str, None, None]:
    """An address that refuses connections. Its port is bound, so that no other program can listen there meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, for a minute at most."""
    ends_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends_s, "waited for 60 s"
        time.sleep(0.005)


class Relay:
    """Carries bytes between clients and a server, until `freeze` makes the connections so far go silent."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._frozen: set[socket.socket] = set()
        self._reply_bytes: int | None = None
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def freeze(self) -> None:
        self._frozen.update(self._ends)

    def cut_after(self, reply_bytes: int | None) -> None:
        """Close each connection after so many bytes of the server, counted from now. None: never."""
        self._reply_bytes = reply_bytes

    def close(self) -> None:
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):  # the other side closed it already
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(60)
        for end in (self._listener, *self._ends):
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # closed
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            self._ends += [near, far]
            for source, sink in ((near, far), (far, near)):
                self._threads.append(threading.Thread(target=self._carry, args=(source, sink, source is far)))
                self._threads[-1].start()

    def _carry(self, source: socket.socket, sink: socket.socket, is_reply: bool) -> None:
        try:
            while data := source.recv(65536):
                if source in self._frozen:
                    continue
                if is_reply and self._reply_bytes is not None:
                    data = data[: self._reply_bytes]
                    self._reply_bytes -= len(data)
                sink.sendall(data)
                if is_reply and self._reply_bytes == 0:
                    for end in (source, sink):
                        end.shutdown(socket.SHUT_RDWR)
        except OSError:  # closed
            return


class Pusher:
    """Always pushes along +y; its every third answer is late if `late`."""

    def __init__(self, *, late: bool = False) -> None:
        self.asked: list[tuple[np.ndarray, np.ndarray]] = []
        self.late = late

    def act(self, state: np.ndarray, goal: np.ndarray) -> Action:
        self.asked.append((state, goal))
        if self.late and len(self.asked) % 3 == 0:
            raise DeadlineExceeded("too late", status="DEADLINE_EXCEEDED")
        return answer(np.array([0.0, 1.0], np.float32), batch_rows=2)


def answer(action: np.ndarray, *, batch_rows: int, round_trip_s: float = 0.001) -> Action:
    return Action(
        chunk=action[None],
        policy="p",
        version="1",
        sequence=1,
        queue_us=0,
        compute_us=0,
        batch_rows=batch_rows,
        round_trip_s=round_trip_s,
    )
