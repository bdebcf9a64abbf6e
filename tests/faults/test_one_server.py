"""Faults of single callers, against a server in this process: what others get, and what is left afterwards."""

import logging
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import generate_latest

from kilolayer import PolicyClient
from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from policy import bundle
from serving.api.open_inference import open_inference_pb2 as inference
from serving.engine.cpu_device import available_cores
from serving.engine.engine import Engine, Kind
from tests.faults.hostile_messages import INFERENCE
from tests.faults.tcp_proxy import TcpProxy
from tests.serving.in_process import Running

GOAL = [1.0, 1.0]
NASTY = ["a\nb", '"}\n{"level": "INFO"}', "\x1b[31mred\x1b[0m", "\x00\x9b\u2028", "\xfc\u202e", "n" * 60_000]


class HeldEngine:
    """Holds every computation until `release`, and notes the first state value of every row that was computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        compute, self._released = Engine.compute, threading.Event()
        self.entered = threading.Semaphore(0)
        self.computed: set[float] = set()

        def held(engine: Engine, kind: Kind, rows: np.ndarray) -> np.ndarray:
            self.computed.update(rows[:, 0].tolist())
            self.entered.release()
            assert self._released.wait(timeout=120)
            return compute(engine, kind, rows)

        monkeypatch.setattr(Engine, "compute", held)

    def release(self) -> None:
        self._released.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Generator[HeldEngine]:
    engine = HeldEngine(monkeypatch)
    yield engine
    engine.release()


def act(stub: Any, first: float, *, timeout_s: float = 120.0) -> Any:
    """Call with a state that begins with `first`."""
    return stub.Act.future(pb.ActRequest(state=[first, 0, 0, 0], goal=GOAL), timeout=timeout_s)


def wait_for(condition: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends_s, "waited for 60 s"
        time.sleep(0.005)


def occupy(stub: Any, held: HeldEngine) -> list[Any]:
    """Start one call for each computation that may run at the same time, so that further calls wait."""
    calls: list[Any] = []
    for number in range(available_cores()):
        calls.append(act(stub, -100.0 - number))
        assert held.entered.acquire(timeout=60)
    return calls


def queued(running: Running) -> float:
    return running.sample("queue_rows", policy="point_u_maze")


def test_calls_whose_client_is_gone_are_not_computed_and_leave_the_queue(running: Running, held: HeldEngine) -> None:
    """One client cancels, the connection of another is cut. A third one waits and is answered."""
    with TcpProxy(running.address) as proxy:
        channels = [grpc.insecure_channel(address) for address in (running.address, proxy.address)]
        stub, proxied = (PolicyStub(channel) for channel in channels)
        blocking = occupy(stub, held)
        cancelled = [act(stub, float(number)) for number in range(10, 14)]
        cut = [act(proxied, float(number)) for number in range(20, 24)]
        patient = act(stub, 30.0)
        wait_for(lambda: queued(running) == 9)
        for call in cancelled:
            call.cancel()
        for connection in proxy.connections:
            connection.cut()
        wait_for(lambda: queued(running) == 1)
        held.release()
        assert len(patient.result().action) == 2
        assert all(len(call.result().action) == 2 for call in blocking)
        assert {call.code() for call in cut} == {grpc.StatusCode.UNAVAILABLE}
        for channel in channels:
            channel.close()
    assert held.computed.isdisjoint({*range(10, 14), *range(20, 24)})
    assert 30.0 in held.computed
    assert queued(running) == 0


def test_a_call_whose_deadline_passes_in_the_queue_is_not_computed(running: Running, held: HeldEngine) -> None:
    with grpc.insecure_channel(running.address) as channel:
        stub = PolicyStub(channel)
        blocking = occupy(stub, held)
        late = [act(stub, float(number), timeout_s=0.2) for number in range(40, 44)]
        # Those that a busy machine delivers late are rejected, because their deadline is too short.
        assert {call.code() for call in late} <= {
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        }
        wait_for(lambda: queued(running) == 0)
        held.release()
        assert all(len(call.result().action) == 2 for call in blocking)
    assert held.computed.isdisjoint(range(40, 44))


def test_rows_beside_hostile_ones_have_the_bytes_that_they_have_alone(running: Running) -> None:
    """A full batch of eight rows has one compiled size, whatever others send."""
    rng = np.random.default_rng(0)
    state, goal = rng.normal(size=(8, 4)).astype(np.float32), rng.normal(size=(8, 2)).astype(np.float32)
    hostile = [np.full((8, 4), value, np.float32) for value in (np.nan, np.inf, -np.inf)]
    for number, each in enumerate(hostile):
        each[:number] = 0.5  # one bad row is enough
        each[number + 1 :] = 0.5
    stop = threading.Event()

    def attack(stub: Any, index: int) -> set[grpc.StatusCode]:
        codes: set[grpc.StatusCode] = set()
        while not stop.is_set() or not codes:
            request = pb.ActRequest(state=hostile[index].ravel(), goal=GOAL)
            codes.add(stub.Act.future(request, timeout=60).code())
        return codes

    with (
        PolicyClient(running.address, timeout_s=60) as client,
        grpc.insecure_channel(running.address) as channel,
        ThreadPoolExecutor(3) as threads,
    ):
        alone = client.act(state, goal).action.tobytes()
        attacks = [threads.submit(attack, PolicyStub(channel), index) for index in range(3)]
        beside = {client.act(state, goal).action.tobytes() for _ in range(100)}
        stop.set()
        assert [each.result() for each in attacks] == [{grpc.StatusCode.INVALID_ARGUMENT}] * 3
    assert beside == {alone}


def calls_with(name: str, address: str) -> Iterator[Any]:
    """Calls of every service that carry a text of the client."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = PolicyStub(channel)
        health: Any = health_pb2_grpc.HealthStub(channel)
        infer = channel.unary_unary(INFERENCE + "ModelInfer", inference.ModelInferRequest.SerializeToString)
        yield stub.Act.future(pb.ActRequest(policy=name, state=[0] * 4, goal=GOAL), timeout=60)
        yield stub.Act.future(pb.ActRequest(version=name, state=[0] * 4, goal=GOAL), timeout=60)
        yield stub.Describe.future(pb.DescribeRequest(policy=name), timeout=60)
        yield infer.future(inference.ModelInferRequest(model_name=name, id=name), timeout=60)
        tensor = inference.ModelInferRequest.InferInputTensor(name=name, datatype=name, shape=[1])
        yield infer.future(inference.ModelInferRequest(inputs=[tensor]), timeout=60)
        yield health.Check.future(health_pb2.HealthCheckRequest(service=name), timeout=60)


@pytest.mark.parametrize("name", [*NASTY, "n" * 2**20], ids=range(len(NASTY) + 1))
def test_a_hostile_name_is_refused_in_short_plain_text_and_writes_no_line(
    running: Running, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with caplog.at_level(logging.INFO):
        for call in calls_with(name, running.address):
            refused = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert call.code() in refused
            assert re.fullmatch(r"[ -~]{1,400}", call.details())
    assert caplog.messages == []


def test_the_number_of_series_does_not_grow_with_what_clients_send(running: Running) -> None:
    def series() -> int:
        lines = generate_latest(running.registry).decode().splitlines()
        return len([line for line in lines if not line.startswith("#")])

    def send(name: str) -> None:
        for call in calls_with(name, running.address):
            call.code()

    for name in ("first", "a\nb"):  # every outcome of these methods has its series now
        send(name)
    before = series()
    for number in range(30):
        send(f"policy-{number}")
    assert series() == before


def test_scrapes_while_a_caller_calls_change_no_answer(policies: Path, running: Running) -> None:
    """Every page is complete and counts all rows that were answered by then."""
    probes = bundle.read(policies / "1000").probes
    before = running.sample("rows_total", policy="point_u_maze")
    rows: list[float] = []
    stop = threading.Event()

    def scrape() -> None:
        while not stop.is_set() or len(rows) < 2:
            page = generate_latest(running.registry).decode()
            (counted,) = re.findall(r'^kilolayer_rows_total{policy="point_u_maze"} (\S+)$', page, re.MULTILINE)
            rows.append(float(counted) - before)

    with PolicyClient(running.address, timeout_s=60) as client, ThreadPoolExecutor(1) as threads:
        scraping = threads.submit(scrape)
        answers = {client.act(probes.state[0], probes.goal[0]).action.tobytes() for _ in range(100)}
        stop.set()
        scraping.result()
    assert running.sample("rows_total", policy="point_u_maze") == before + 100
    assert len(answers) == 1
    assert rows == sorted(rows)
    assert rows[-1] <= 100
