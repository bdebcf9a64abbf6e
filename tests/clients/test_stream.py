"""The Python client's stream: replies matched with their requests, failures that end it and failures that do not."""

from __future__ import annotations  # for Python 3.9

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import pytest

import kilolayer
from kilolayer import _stream_connection
from kilolayer.v1 import policy_pb2
from tests.clients.fakes import FakePolicy, Relay, free_port, start_server, wait_until


@pytest.fixture
def stream(client: kilolayer.PolicyClient) -> Iterator[kilolayer.PolicyStream]:
    with client.stream() as stream:
        yield stream


@pytest.fixture
def release(fake: FakePolicy) -> Iterator[threading.Event]:
    """Set, it lets the server answer; until then the server holds every Act."""
    release = threading.Event()
    fake.on_act = lambda _: release.wait(60)
    yield release
    release.set()


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, for the deadlines of a stream's requests; it passes only when a test says so."""
    now_s = [100.0]
    monkeypatch.setattr(_stream_connection.PendingRequest.__init__, "__kwdefaults__", {"clock": lambda: now_s[0]})
    return now_s


def fail_with(code: grpc.StatusCode) -> Callable[[policy_pb2.ActResponse], None]:
    def fail(reply: policy_pb2.ActResponse) -> None:
        reply.ClearField("action")
        reply.failure.code, reply.failure.message = code.value[0], "the reason of the server"
        reply.failure.reason = "the_reason"

    return fail


def test_a_stream_gives_what_act_gives_and_stays_open(
    client: kilolayer.PolicyClient, stream: kilolayer.PolicyStream, fake: FakePolicy
) -> None:
    for tick in range(20):
        state, goal = [[tick / 64, 0.25, 9.0], [0, tick / 64, 9.0]], [0.25, 0.5]
        answer, expected = stream.act(state, goal), client.act(state, goal)
        np.testing.assert_array_equal(answer.action, expected.action)
        assert (answer.policy, answer.version) == ("maze", "200")
        assert (answer.queue_us, answer.compute_us, answer.batch_rows) == (11, 22, 7)
        assert 0 < answer.round_trip_s < 60
    assert fake.streams == 1
    assert [request.sequence for request in fake.acts] == list(range(1, 41))  # of both, told apart


def test_one_state_gives_one_action(stream: kilolayer.PolicyStream) -> None:
    answer = stream.act(np.array([0.5, 0.25, 9.0]), np.array([0.25, 0.75]))
    assert answer.action.tolist() == [0.75, -0.25]
    assert answer.sequence == 1


@pytest.mark.usefixtures("now_s")
def test_a_request_has_the_arguments_of_its_call(address: str, fake: FakePolicy) -> None:
    with kilolayer.PolicyClient(address, policy="ant", version=7) as client, client.stream() as stream:
        stream.send([0, 0, 0], [0, 0], seed=5, best_of=8, priority=2, timeout_s=3.25)
        stream.send([0, 0, 0], [0, 0])
        wait_until(lambda: len(fake.acts) == 2)
    first, second = fake.acts
    assert (first.policy, first.version, first.rows) == ("ant", "7", 1)
    assert (first.mode, first.seed, first.candidates) == (policy_pb2.ACT_MODE_BEST_OF, 5, 8)
    assert (first.priority, first.timeout_us) == (2, 3_250_000)
    assert (second.mode, second.priority, second.timeout_us) == (policy_pb2.ACT_MODE_UNSPECIFIED, 0, 1_000_000)


def test_arrays_that_do_not_fit_are_refused_before_sending(stream: kilolayer.PolicyStream, fake: FakePolicy) -> None:
    with pytest.raises(kilolayer.InvalidRequest, match="Not sent: goal must be one row"):
        stream.act([0, 0, 0], [])
    assert fake.streams == 0


@pytest.mark.usefixtures("now_s")  # both requests are sent, however busy the machine is
def test_a_late_reply_is_dropped_and_the_next_call_gets_its_own(
    stream: kilolayer.PolicyStream, fake: FakePolicy, release: threading.Event
) -> None:
    for timeout_s in (0.05, 0.06):
        expected = rf"ActStream at .* failed \(DEADLINE_EXCEEDED, timeout {timeout_s} s\): .*no reply in time"
        with pytest.raises(kilolayer.DeadlineExceeded, match=expected):
            stream.act([0.5, 0.5, 0], [0, 0], timeout_s=timeout_s)
    release.set()  # replies come in order, so both late ones come before this one
    assert stream.act([0.125, 0.25, 0], [0, 0]).action.tolist() == [0.25, 0.5]
    assert (fake.streams, len(fake.acts)) == (1, 3)


def test_a_reply_in_time_is_too_late_for_act_if_its_thread_is(
    stream: kilolayer.PolicyStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]

    def clock() -> float:
        read_s = now_s[0]
        if threading.current_thread().name == "kilolayer-stream":  # the reply has arrived
            now_s[0] += 60.25  # the timeout is 60 s
        return read_s

    monkeypatch.setattr(_stream_connection.PendingRequest.__init__, "__kwdefaults__", {"clock": clock})
    with pytest.raises(kilolayer.DeadlineExceeded, match=r"timeout 60 s\): the reply came too late\."):
        stream.act([0.5, 0, 0], [0, 0])
    sent = stream.send([0.5, 0, 0], [0, 0])
    assert sent.receive().action.tolist() == [1, 0]  # whenever it is received


def test_a_reply_can_be_received_again(stream: kilolayer.PolicyStream) -> None:
    first = stream.send([0.5, 0, 0], [0, 0])
    stream.act([0, 0, 0], [0, 0])
    once, again = first.receive(), first.receive()
    assert once.action.tolist() == again.action.tolist() == [1, 0]
    assert once.round_trip_s == again.round_trip_s


def test_a_pending_action_prints_its_number_and_state(
    stream: kilolayer.PolicyStream, fake: FakePolicy, release: threading.Event
) -> None:
    answered, late = stream.send([0, 0, 0], [0, 0]), stream.send([0, 0, 0], [0, 0], timeout_s=0.01)
    assert repr(answered) == "<PendingAction 1: pending>"
    with pytest.raises(kilolayer.DeadlineExceeded):
        late.receive()
    release.set()
    answered.receive()
    assert [repr(answered), repr(late)] == ["<PendingAction 1: answered>", "<PendingAction 2: failed>"]
    fake.on_act = fail_with(grpc.StatusCode.INTERNAL)
    refused = stream.send([0, 0, 0], [0, 0])
    with pytest.raises(kilolayer.ServerFailure):
        refused.receive()
    assert repr(refused) == "<PendingAction 3: failed>"


def test_the_round_trip_is_from_sending_to_arrival(
    client: kilolayer.PolicyClient, fake: FakePolicy, now_s: list[float]
) -> None:
    def take_a_quarter_second(_reply: policy_pb2.ActResponse) -> None:
        now_s[0] += 0.25

    fake.on_act = take_a_quarter_second
    with client.stream() as stream:
        assert stream.act([0, 0, 0], [0, 0]).round_trip_s == 0.25


def test_many_requests_are_pending_and_each_receives_its_own(
    stream: kilolayer.PolicyStream, fake: FakePolicy, release: threading.Event
) -> None:
    pending = [stream.send([tick / 128, 0, 0], [0, 0], timeout_s=60) for tick in range(64)]
    refused = stream.send([0, 0, 0], [0, 0], timeout_s=0.05)
    with pytest.raises(kilolayer.DeadlineExceeded, match="not sent, 64 requests of the stream wait for replies"):
        refused.receive()
    with futures.ThreadPoolExecutor(1) as pool:
        one_more = pool.submit(stream.send, [0.25, 0, 0], [0, 0], timeout_s=60)  # waits for room
        release.set()
        assert one_more.result().receive().action.tolist() == [0.5, 0]
    assert [each.receive().action[0] for each in reversed(pending)] == [tick / 64 for tick in reversed(range(64))]
    assert len(fake.acts) == 65


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, kilolayer.InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, kilolayer.PolicyNotFound),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, kilolayer.Overloaded),
        (grpc.StatusCode.DEADLINE_EXCEEDED, kilolayer.DeadlineExceeded),
        (grpc.StatusCode.UNAVAILABLE, kilolayer.Unavailable),
        (grpc.StatusCode.INTERNAL, kilolayer.ServerFailure),
    ],
)
def test_a_failure_in_the_stream_does_not_end_it(
    stream: kilolayer.PolicyStream, fake: FakePolicy, code: grpc.StatusCode, kind: type[kilolayer.KilolayerError]
) -> None:
    assert stream.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
    fake.on_act = fail_with(code)
    with pytest.raises(kilolayer.KilolayerError, match="the reason of the server") as failure:
        stream.act([0.5, 0, 0], [0, 0])
    assert type(failure.value) is kind
    assert failure.value.status == code.name
    assert failure.value.reason == "the_reason"
    fake.on_act = lambda _: None
    assert stream.act([0.25, 0, 0], [0, 0]).action.tolist() == [0.5, 0]
    assert fake.streams == 1


def test_an_unknown_code_is_a_failure_of_the_server(stream: kilolayer.PolicyStream, fake: FakePolicy) -> None:
    def fail(reply: policy_pb2.ActResponse) -> None:
        reply.failure.code = 99

    fake.on_act = fail
    with pytest.raises(kilolayer.ServerFailure, match="UNKNOWN"):
        stream.act([0, 0, 0], [0, 0])


def test_a_status_that_ends_the_stream_is_reported_and_the_next_call_opens_another(
    stream: kilolayer.PolicyStream, fake: FakePolicy
) -> None:
    fake.failure = (grpc.StatusCode.UNAVAILABLE, "shutting down")
    with pytest.raises(kilolayer.Unavailable, match="shutting down"):
        stream.act([0, 0, 0], [0, 0])
    fake.failure = None
    assert stream.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
    assert fake.streams == 2


def test_a_stream_that_the_server_cancels_is_unavailable(stream: kilolayer.PolicyStream, fake: FakePolicy) -> None:
    fake.failure = (grpc.StatusCode.CANCELLED, "any text")
    with pytest.raises(kilolayer.Unavailable, match="the server canceled the stream") as failure:
        stream.act([0, 0, 0], [0, 0])
    assert failure.value.status == "UNAVAILABLE"


def test_actions_outside_the_contract_fail_their_request_alone(
    stream: kilolayer.PolicyStream, fake: FakePolicy
) -> None:
    def alter(reply: policy_pb2.ActResponse) -> None:
        reply.action[0] = 1.5

    fake.on_act = alter
    with pytest.raises(kilolayer.BadReply, match=r"must lie in \[-1, 1\]"):
        stream.act([0, 0, 0], [0, 0])
    fake.on_act = lambda _: None
    assert stream.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
    assert fake.streams == 1


def test_a_reply_to_no_pending_request_ends_the_stream(stream: kilolayer.PolicyStream, fake: FakePolicy) -> None:
    def alter(reply: policy_pb2.ActResponse) -> None:
        reply.sequence += 40

    fake.on_act = alter
    with pytest.raises(kilolayer.BadReply, match="answers request 41, which is not pending"):
        stream.act([0, 0, 0], [0, 0])
    fake.on_act = lambda _: None
    assert stream.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
    assert fake.streams == 2


def test_a_restarted_server_is_found_again() -> None:
    first = FakePolicy()
    release = threading.Event()
    server, port = start_server(first, free_port())
    with kilolayer.PolicyClient(f"127.0.0.1:{port}", timeout_s=60) as client, client.stream() as stream:
        first.on_act = lambda _: release.wait(60)
        pending = [stream.send([0, 0, 0], [0, 0]) for _ in range(3)]
        assert first.act_arrived.wait(60)
        stopped = server.stop(0)
        for each in pending:
            with pytest.raises(kilolayer.Unavailable):
                each.receive()
        release.set()
        stopped.wait()
        with pytest.raises(kilolayer.Unavailable):
            stream.act([0, 0, 0], [0, 0])
        second = FakePolicy()
        server, _ = start_server(second, port)
        client.wait_until_ready(60)
        for _ in range(3):
            assert stream.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
        assert (second.streams, len(second.acts)) == (1, 3)
        server.stop(0).wait()


def test_a_connection_that_went_silent_is_replaced(address: str, fake: FakePolicy) -> None:
    with (
        contextlib.closing(Relay(int(address.rpartition(":")[2]))) as relay,
        kilolayer.PolicyClient(relay.address, timeout_s=60) as client,
        client.stream() as stream,
    ):
        client.wait_until_ready(60)
        assert stream.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
        relay.freeze()
        with pytest.raises(kilolayer.Unavailable):  # and not DeadlineExceeded, after 60 s
            stream.act([0.5, 0, 0], [0, 0])
        client.wait_until_ready(60)
        assert stream.act([0.25, 0, 0], [0, 0]).action.tolist() == [0.5, 0]
    assert fake.streams == 2


def test_an_absent_server_is_unavailable_immediately(nowhere: str) -> None:
    with kilolayer.PolicyClient(nowhere, timeout_s=60) as client, client.stream() as stream:
        for _ in range(3):
            with pytest.raises(kilolayer.Unavailable, match="Connection refused"):  # and not DeadlineExceeded
                stream.act([0, 0, 0], [0, 0])


@pytest.mark.parametrize("what", ["stream", "client"])
def test_closing_ends_a_pending_call(address: str, fake: FakePolicy, release: threading.Event, what: str) -> None:
    client = kilolayer.PolicyClient(address, timeout_s=60)
    stream = client.stream()
    with futures.ThreadPoolExecutor(1) as pool:
        call = pool.submit(stream.act, [0, 0, 0], [0, 0])
        assert fake.act_arrived.wait(60)
        closed: Any = {"stream": stream, "client": client}[what]
        closed.close()
        with pytest.raises(kilolayer.ClientClosed, match=f"the {what} was closed"):
            call.result(timeout=60)
    with pytest.raises(kilolayer.ClientClosed, match=f"the {what} was closed"):
        stream.act([0, 0, 0], [0, 0])
    stream.close()
    client.close()
    assert len(fake.acts) == 1


def test_closing_a_stream_leaves_its_client_open(client: kilolayer.PolicyClient) -> None:
    for _ in range(2):
        with client.stream() as stream:
            assert stream.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
    assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]


def test_a_closed_stream_leaves_no_thread(client: kilolayer.PolicyClient) -> None:
    def threads() -> set[threading.Thread]:  # without those of the server
        return {thread for thread in threading.enumerate() if not thread.name.startswith("ThreadPoolExecutor")}

    client.act([0, 0, 0], [0, 0])
    before = threads()
    with client.stream() as stream:
        stream.act([0, 0, 0], [0, 0])
        started = threads() - before
        assert len(started) >= 2
    for thread in started:
        thread.join(60)
        assert not thread.is_alive()


def test_threads_share_a_stream_and_each_gets_its_own_answers(stream: kilolayer.PolicyStream, fake: FakePolicy) -> None:
    def drive(thread: int) -> list[int]:
        numbers: list[int] = []
        for tick in range(50):
            answer = stream.act([thread / 64, tick / 128, 0], [0, 0])
            assert answer.action.tolist() == [thread / 32, tick / 64]
            numbers.append(answer.sequence)
        return numbers

    with futures.ThreadPoolExecutor(8) as pool:
        numbers = [number for numbers in pool.map(drive, range(8)) for number in numbers]
    assert sorted(numbers) == list(range(1, 401))
    assert (fake.streams, len(fake.acts)) == (1, 400)
