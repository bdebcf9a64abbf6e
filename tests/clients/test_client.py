"""The Python client against a real gRPC server in this process, whose answers are worked out by hand."""
# ruff: noqa: N802 - the servicer's methods are named by the protocol

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest

import kilolayer
from kilolayer.v1 import policy_pb2, policy_pb2_grpc

STATE_DIM, GOAL_DIM, ACTION_DIM = 3, 2, 2


class FakePolicy(policy_pb2_grpc.PolicyServicer):
    """Answers action = 2 * state[:2] - goal, and whatever `on_act` makes of it."""

    def __init__(self) -> None:
        self.acts: list[policy_pb2.ActRequest] = []
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self.on_act: Callable[[policy_pb2.ActResponse], Any] = lambda _: None

    def Act(self, request: policy_pb2.ActRequest, context: grpc.ServicerContext) -> policy_pb2.ActResponse:
        self.acts.append(request)
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

    def Describe(
        self, request: policy_pb2.DescribeRequest, context: grpc.ServicerContext
    ) -> policy_pb2.DescribeResponse:
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
        )
        return policy_pb2.DescribeResponse(spec=spec, version="200", manifest_sha256="ab12", max_rows=1024)

    def List(self, request: policy_pb2.ListRequest, context: grpc.ServicerContext) -> policy_pb2.ListResponse:
        self._maybe_fail(context)
        ant = policy_pb2.PolicyEntry(policy="ant", versions=["7"], live_version="7")
        maze = policy_pb2.PolicyEntry(policy="maze", versions=["100", "200"], live_version="200", is_default=True)
        return policy_pb2.ListResponse(policies=[ant, maze])

    def _maybe_fail(self, context: grpc.ServicerContext) -> None:
        if self.failure is not None:
            context.abort(*self.failure)


def start_server(fake: FakePolicy, port: int = 0) -> tuple[grpc.Server, int]:
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    policy_pb2_grpc.add_PolicyServicer_to_server(fake, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def fake() -> FakePolicy:
    return FakePolicy()


@pytest.fixture
def address(fake: FakePolicy) -> Iterator[str]:
    server, port = start_server(fake)
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture
def client(address: str) -> Iterator[kilolayer.PolicyClient]:
    with kilolayer.PolicyClient(address, timeout_s=5) as client:
        yield client


def test_one_state_gives_one_action_and_the_facts_about_it(client: kilolayer.PolicyClient) -> None:
    answer = client.act(np.array([0.5, 0.25, 9.0]), np.array([0.25, 0.75]), sequence=41)
    np.testing.assert_array_equal(answer.action, np.array([0.75, -0.25], np.float32))
    assert answer.action.dtype == np.float32
    assert (answer.policy, answer.version, answer.sequence) == ("maze", "200", 41)
    assert (answer.queue_us, answer.compute_us, answer.batch_rows) == (11, 22, 6)
    assert 0 < answer.round_trip_s < 5


def test_a_block_of_rows_keeps_its_order_and_pairs_each_state_with_its_goal(client: kilolayer.PolicyClient) -> None:
    state = [[0.5, 0.25, 0], [0.125, -0.5, 0], [0, 0, 0]]
    goal = [[0.25, 0.75], [0.5, -0.5], [1, -1]]
    answer = client.act(state, goal)
    np.testing.assert_array_equal(answer.action, [[0.75, -0.25], [-0.25, -0.5], [-1, 1]])


def test_one_goal_serves_every_row_and_travels_once(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    answer = client.act([[0.5, 0.25, 0], [0.125, -0.5, 0]], [0.25, 0])
    np.testing.assert_array_equal(answer.action, [[0.75, 0.5], [0, -1]])
    assert list(fake.acts[0].goal) == [0.25, 0]


def test_a_block_of_one_row_answers_with_a_block(client: kilolayer.PolicyClient) -> None:
    assert client.act([[0.5, 0.25, 0]], [0, 0]).action.tolist() == [[1, 0.5]]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda rows: rows, id="float64"),
        pytest.param(lambda rows: rows.astype(np.float32), id="float32"),
        pytest.param(lambda rows: rows.astype(">f4"), id="big-endian"),
        pytest.param(np.asfortranarray, id="column by column"),
        pytest.param(lambda rows: np.repeat(rows, 2, axis=1)[:, ::2], id="strided"),
        pytest.param(lambda rows: rows.tolist(), id="lists"),
    ],
)
def test_any_layout_of_the_same_numbers_is_the_same_request(
    client: kilolayer.PolicyClient, fake: FakePolicy, make: Callable[[Any], Any]
) -> None:
    rows = np.arange(300, dtype=np.float64).reshape(100, 3) / 1024  # 1200 bytes: a length of two bytes on the wire
    client.act(make(rows), [0.0, 0.0])
    assert list(fake.acts[0].state) == rows.ravel().tolist()
    assert fake.acts[0].rows == 100
    assert list(fake.acts[0].goal) == [0, 0]


def test_integers_are_numbers_too(client: kilolayer.PolicyClient) -> None:
    assert client.act(np.array([0, 0, 5]), np.array([1, -1])).action.tolist() == [-1, 1]


def test_policy_and_version_are_asked_for_by_name(address: str, fake: FakePolicy) -> None:
    with kilolayer.PolicyClient(address, policy="ant", version=7) as client:
        answer = client.act([0, 0, 0], [0, 0])
    assert (fake.acts[0].policy, fake.acts[0].version) == ("ant", "7")
    assert (answer.policy, answer.version) == ("ant", "7")


@pytest.mark.parametrize(
    ("state", "goal", "complaint"),
    [
        (0.5, [0, 0], "state must be one row"),
        ([[[0, 0, 0]]], [0, 0], "state must be one row"),
        ([], [0, 0], "state must be one row"),
        (np.zeros((0, 3)), [0, 0], r"not of shape \[0, 3\]"),
        ([0, 0, 0], [], "goal must be one row"),
        ([0, 0, 0], [[0, 0]], r"goal \[1, 2\] does not fit state \[3\]"),
        ([[0, 0, 0]] * 3, [[0, 0]] * 2, r"goal \[2, 2\] does not fit state \[3, 3\]"),
        ([[0, 0, 0]] * 3, [[0, 0]], "one goal of one axis for all of them"),
        ([[0, 0], [0]], [0, 0], "state must be an array of numbers"),
        (["a", "b", "c"], [0, 0], "state must be an array of numbers"),
        ([1j, 0, 0], [0, 0], "state must be an array of numbers"),
        ([0, 0, 0], [None, 0], "goal must be an array of numbers"),
    ],
)
def test_what_cannot_fit_is_refused_before_sending(
    client: kilolayer.PolicyClient, fake: FakePolicy, state: Any, goal: Any, complaint: str
) -> None:
    with pytest.raises(kilolayer.InvalidRequest, match=complaint) as refusal:
        client.act(state, goal)
    assert refusal.value.status == "INVALID_ARGUMENT"
    assert fake.acts == []


@pytest.mark.parametrize("sequence", [-1, 2**64])
def test_a_sequence_number_has_64_bits(client: kilolayer.PolicyClient, sequence: int) -> None:
    with pytest.raises(kilolayer.InvalidRequest, match=f"18446744073709551615, not {sequence}"):
        client.act([0, 0, 0], [0, 0], sequence=sequence)


def test_sequence_numbers_reach_both_ends_of_their_range_and_count_by_themselves(
    client: kilolayer.PolicyClient, fake: FakePolicy
) -> None:
    given = [client.act([0, 0, 0], [0, 0], sequence=number).sequence for number in (0, 2**64 - 1)]
    counted = [client.act([0, 0, 0], [0, 0]).sequence for _ in range(3)]
    assert given == [0, 2**64 - 1]
    assert counted == [1, 2, 3]
    assert [request.sequence for request in fake.acts] == [*given, *counted]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sequence": 40}, "answers request 40, not 41"),
        ({"action": []}, "0 action values cannot be shared among 2 rows"),
        ({"action": [0.5] * 3}, "3 action values cannot be shared among 2 rows"),
        ({"action": [0.5, 0.5, 0.5, float("nan")]}, r"must lie in \[-1, 1\]"),
        ({"action": [0.5, 0.5, 0.5, 1.5]}, "from 0.5 to 1.5"),
    ],
)
def test_a_reply_that_does_not_answer_the_request_is_refused(
    client: kilolayer.PolicyClient, fake: FakePolicy, change: dict[str, Any], complaint: str
) -> None:
    def alter(reply: policy_pb2.ActResponse) -> None:
        for field in change:
            reply.ClearField(field)  # type: ignore[arg-type]
        reply.MergeFrom(policy_pb2.ActResponse(**change))

    fake.on_act = alter
    with pytest.raises(kilolayer.BadReply, match=complaint):
        client.act([[0, 0, 0], [0, 0, 0]], [0, 0], sequence=41)


@pytest.mark.parametrize(
    ("code", "kind", "parent", "advice"),
    [
        ("INVALID_ARGUMENT", kilolayer.InvalidRequest, kilolayer.RequestError, "describe()"),
        ("OUT_OF_RANGE", kilolayer.InvalidRequest, kilolayer.RequestError, "describe()"),
        ("NOT_FOUND", kilolayer.PolicyNotFound, kilolayer.RequestError, "list_policies()"),
        ("UNAUTHENTICATED", kilolayer.AccessDenied, kilolayer.RequestError, "access"),
        ("PERMISSION_DENIED", kilolayer.AccessDenied, kilolayer.RequestError, "access"),
        ("RESOURCE_EXHAUSTED", kilolayer.Overloaded, kilolayer.ServerError, "next observation"),
        ("UNAVAILABLE", kilolayer.Unavailable, kilolayer.ServerError, "Check the address"),
        ("DEADLINE_EXCEEDED", kilolayer.DeadlineExceeded, kilolayer.KilolayerError, "allow more time"),
        ("UNIMPLEMENTED", kilolayer.ServerFailure, kilolayer.ServerError, "Kilolayer server of this version"),
        ("INTERNAL", kilolayer.ServerFailure, kilolayer.ServerError, "log"),
        ("UNKNOWN", kilolayer.ServerFailure, kilolayer.ServerError, "log"),
        ("DATA_LOSS", kilolayer.ServerFailure, kilolayer.ServerError, "log"),
        ("ABORTED", kilolayer.ServerFailure, kilolayer.ServerError, "log"),
        ("CANCELLED", kilolayer.ServerFailure, kilolayer.ServerError, "log"),
        ("ALREADY_EXISTS", kilolayer.ServerFailure, kilolayer.ServerError, "log"),
        ("FAILED_PRECONDITION", kilolayer.ServerFailure, kilolayer.ServerError, "log"),
    ],
)
def test_each_status_has_its_exception_and_is_never_retried(
    client: kilolayer.PolicyClient,
    fake: FakePolicy,
    *,
    code: str,
    kind: type[kilolayer.KilolayerError],
    parent: type[kilolayer.KilolayerError],
    advice: str,
) -> None:
    fake.failure = (grpc.StatusCode[code], "the reason of the server")
    for call in (lambda: client.act([0, 0, 0], [0, 0]), client.describe, client.list_policies):
        with pytest.raises(kilolayer.KilolayerError, match="the reason of the server") as failure:
            call()
        assert type(failure.value) is kind
        assert isinstance(failure.value, parent)
        assert failure.value.status == code
        assert code in str(failure.value)
        assert advice in str(failure.value)
    assert len(fake.acts) == 1


def test_every_status_is_covered_above() -> None:
    marks = test_each_status_has_its_exception_and_is_never_retried.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in marks[0].args[1]} == {code.name for code in grpc.StatusCode} - {"OK"}


def test_a_message_over_the_limit_is_the_request_s_fault_not_overload(client: kilolayer.PolicyClient) -> None:
    with pytest.raises(kilolayer.InvalidRequest, match="fewer rows") as refusal:
        client.act(np.zeros((500_000, 3)), [0, 0])  # 6 MB, over gRPC's limit of 4 MiB
    assert refusal.value.status == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("own_limit", [True, False])
def test_the_deadline_is_kept(address: str, fake: FakePolicy, own_limit: bool) -> None:
    release = threading.Event()
    fake.on_act = lambda _: release.wait(10)
    with kilolayer.PolicyClient(address, timeout_s=0.2 if own_limit else 60) as client:
        client.describe(timeout_s=5)
        start_s = time.monotonic()
        with pytest.raises(kilolayer.DeadlineExceeded, match=r"within 0\.2 s failed \(DEADLINE_EXCEEDED\)"):
            client.act([0, 0, 0], [0, 0], timeout_s=None if own_limit else 0.2)
        waited_s = time.monotonic() - start_s
        release.set()
    assert 0.19 < waited_s < 0.7
    assert len(fake.acts) == 1


def test_after_a_deadline_the_next_call_gets_its_own_answer(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    release = threading.Event()
    fake.on_act = lambda _: release.wait(10)
    with pytest.raises(kilolayer.DeadlineExceeded):
        client.act([0.5, 0.5, 0], [0, 0], timeout_s=0.1)
    release.set()
    assert client.act([0.125, 0.25, 0], [0, 0]).action.tolist() == [0.25, 0.5]


def test_the_round_trip_covers_the_server_s_work(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    fake.on_act = lambda _: time.sleep(0.1)
    assert 0.1 <= client.act([0, 0, 0], [0, 0]).round_trip_s < 0.6


def test_an_absent_server_is_unavailable_at_once() -> None:
    with kilolayer.PolicyClient(f"127.0.0.1:{free_port()}", timeout_s=30) as client:
        start_s = time.monotonic()
        for _ in range(3):
            with pytest.raises(kilolayer.Unavailable, match="Connection refused"):
                client.act([0, 0, 0], [0, 0])
        assert time.monotonic() - start_s < 1


def test_a_host_that_accepts_and_stays_silent_meets_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with kilolayer.PolicyClient(address, timeout_s=0.2) as client, pytest.raises(kilolayer.DeadlineExceeded):
            client.act([0, 0, 0], [0, 0])


def test_a_restarted_server_is_found_again() -> None:
    server, port = start_server(FakePolicy())
    with kilolayer.PolicyClient(f"127.0.0.1:{port}") as client:
        assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
        server.stop(0).wait()
        until_s = time.monotonic() + 1  # long enough for the pause between two attempts to have grown to its limit
        while time.monotonic() < until_s:
            with pytest.raises(kilolayer.Unavailable):
                client.act([0.5, 0, 0], [0, 0])
            time.sleep(0.02)
        second = FakePolicy()
        server, _ = start_server(second, port)
        restarted_s = time.monotonic()
        while not second.acts:
            assert time.monotonic() - restarted_s < 3, "the client did not come back"
            try:
                assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
            except kilolayer.Unavailable:
                time.sleep(0.02)
        server.stop(0).wait()


class Relay:
    """Carries bytes between clients and a server, until `freeze` makes the connections so far go silent."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._frozen: set[socket.socket] = set()
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def freeze(self) -> None:
        self._frozen.update(self._ends)

    def close(self) -> None:
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):  # the other side closed it already
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
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
                self._threads.append(threading.Thread(target=self._carry, args=(source, sink)))
                self._threads[-1].start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if source not in self._frozen:
                    sink.sendall(data)
        except OSError:  # closed
            return


def test_a_connection_that_went_silent_is_replaced(address: str, fake: FakePolicy) -> None:
    with (
        contextlib.closing(Relay(int(address.rpartition(":")[2]))) as relay,
        kilolayer.PolicyClient(relay.address, timeout_s=0.1) as client,
    ):
        client.wait_until_ready(5)
        assert client.act([0.5, 0, 0], [0, 0], timeout_s=5).action.tolist() == [1, 0]
        relay.freeze()
        frozen_s = time.monotonic()
        with pytest.raises(kilolayer.DeadlineExceeded):
            client.act([0.5, 0, 0], [0, 0])
        while len(fake.acts) < 2:
            assert time.monotonic() - frozen_s < 10, "the client did not come back"
            try:
                assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
            except (kilolayer.DeadlineExceeded, kilolayer.Unavailable):
                time.sleep(0.02)


def test_describe_gives_every_field(client: kilolayer.PolicyClient) -> None:
    described = client.describe()
    assert dataclasses.asdict(described) == {
        "name": "maze",
        "version": "200",
        "environment": "point_u_maze",
        "state_names": ("x [m]", "y [m]", "v [m/s]"),
        "goal_names": ("x [m]", "y [m]"),
        "action_names": ("fx [N]", "fy [N]"),
        "action_low": (-2, -3),
        "action_high": (2, 3),
        "control_period_s": 0.05,
        "success_radius": 0.5,
        "actor_depth": 16,
        "actor_width": 256,
        "critic_depth": 32,
        "critic_width": 128,
        "representation_dim": 64,
        "energy": "dot",
        "activation": "relu",
        "layer_norm": True,
        "residual": False,
        "manifest_sha256": "ab12",
        "max_rows": 1024,
    }
    assert (described.state_dim, described.goal_dim, described.action_dim) == (3, 2, 2)


def test_list_policies_gives_every_field(client: kilolayer.PolicyClient) -> None:
    assert client.list_policies() == (
        kilolayer.PolicyListing(policy="ant", versions=("7",), live_version="7", is_default=False),
        kilolayer.PolicyListing(policy="maze", versions=("100", "200"), live_version="200", is_default=True),
    )


def test_wait_until_ready_waits_for_a_server_that_starts_later() -> None:
    port, fake = free_port(), FakePolicy()
    fake.failure = (grpc.StatusCode.UNAVAILABLE, "loading")
    started: list[grpc.Server] = []

    def start_late() -> None:
        time.sleep(0.3)
        started.append(start_server(fake, port)[0])
        time.sleep(0.3)
        fake.failure = None

    starter = threading.Thread(target=start_late)
    starter.start()
    with kilolayer.PolicyClient(f"127.0.0.1:{port}", policy="ant") as client:
        begin_s = time.monotonic()
        assert client.wait_until_ready(10).name == "ant"
        assert 0.5 < time.monotonic() - begin_s < 5
    starter.join()
    started[0].stop(0).wait()


def test_wait_until_ready_gives_up_in_time() -> None:
    with kilolayer.PolicyClient(f"127.0.0.1:{free_port()}") as client:
        begin_s = time.monotonic()
        with pytest.raises(kilolayer.DeadlineExceeded, match=r"was not ready within 0\.5 s"):
            client.wait_until_ready(0.5)
        assert 0.45 < time.monotonic() - begin_s < 1.5


def test_wait_until_ready_reports_a_policy_that_is_not_there(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    fake.failure = (grpc.StatusCode.NOT_FOUND, "there are: maze")
    with pytest.raises(kilolayer.PolicyNotFound, match="there are: maze"):
        client.wait_until_ready(5)


def test_a_closed_client_refuses_clearly(address: str, fake: FakePolicy) -> None:
    with kilolayer.PolicyClient(address) as client:
        client.act([0, 0, 0], [0, 0])
    client.close()  # a second time
    calls: list[Callable[[], Any]] = [
        lambda: client.act([0, 0, 0], [0, 0]),
        client.describe,
        client.list_policies,
        lambda: client.wait_until_ready(5),
    ]
    for call in calls:
        with pytest.raises(kilolayer.ClientClosed, match="Make a new PolicyClient") as refusal:
            call()
        assert refusal.value.status == "CANCELLED"
    assert len(fake.acts) == 1


def test_closing_ends_a_call_under_way(address: str, fake: FakePolicy) -> None:
    arrived, release = threading.Event(), threading.Event()

    def hold(reply: policy_pb2.ActResponse) -> None:
        arrived.set()
        release.wait(10)

    fake.on_act = hold
    client = kilolayer.PolicyClient(address, timeout_s=30)
    with futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.act, [0, 0, 0], [0, 0])
        assert arrived.wait(5)
        client.close()
        with pytest.raises(kilolayer.ClientClosed):
            call.result(timeout=5)
    release.set()


def test_closing_ends_a_wait_for_the_server() -> None:
    client = kilolayer.PolicyClient(f"127.0.0.1:{free_port()}")
    with futures.ThreadPoolExecutor(1) as pool:
        wait = pool.submit(client.wait_until_ready, 60)
        time.sleep(0.2)
        client.close()
        with pytest.raises(kilolayer.ClientClosed):
            wait.result(timeout=5)


def test_threads_share_a_client_and_each_gets_its_own_answers(client: kilolayer.PolicyClient, fake: FakePolicy) -> None:
    def drive(thread: int) -> list[int]:
        numbers: list[int] = []
        for tick in range(50):
            answer = client.act([thread / 64, tick / 128, 0], [0, 0])
            assert answer.action.tolist() == [thread / 32, tick / 64]
            numbers.append(answer.sequence)
        return numbers

    with futures.ThreadPoolExecutor(8) as pool:
        numbers = [number for numbers in pool.map(drive, range(8)) for number in numbers]
    assert sorted(numbers) == list(range(1, 401))
    assert len(fake.acts) == 400


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("localhost", "must name a port"),
        ("", "must name a port"),
        ("http://localhost:50051", "without a scheme"),
        ("grpc://localhost:50051", "without a scheme"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(address: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        kilolayer.PolicyClient(address)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_every_limit_is_a_positive_number(client: kilolayer.PolicyClient, timeout_s: float) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: kilolayer.PolicyClient("localhost:50051", timeout_s=timeout_s),
        lambda: client.act([0, 0, 0], [0, 0], timeout_s=timeout_s),
        lambda: client.describe(timeout_s=timeout_s),
        lambda: client.list_policies(timeout_s=timeout_s),
        lambda: client.wait_until_ready(timeout_s),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="timeout_s must be a positive number"):
            call()
