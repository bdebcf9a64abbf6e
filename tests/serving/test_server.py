"""One server in this process, from closed ports to closed ports."""

import asyncio
import re
import socket
import threading
import time
import types
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from serving import server as server_module
from serving.batching.batcher import Batcher
from serving.batching.queue import QueuedRequest
from serving.config import ServeConfig
from serving.engine.engine import Engine, Executable, Kind
from serving.errors import BrokenError, StartupError
from serving.server import Server, load
from serving.sockets import TcpAddress
from serving.telemetry import heartbeat
from serving.workers.shutdown import finished_before

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
GOOD = pb.ActRequest(state=[0] * 4, goal=[0] * 2)


def config_of(policies: Path, **fields: Any) -> ServeConfig:
    settings: dict[str, Any] = {
        "policies": (policies,),
        "listen": "127.0.0.1:0",
        "metrics_port": 0,
        "max_batch_rows": 1,
        **fields,
    }
    return ServeConfig(**settings)


def port_of(server: Server) -> int:
    assert isinstance(server.address, TcpAddress)
    return server.address.port


async def http_status(server: Server, path: str = "/healthz") -> int:
    url = server.addresses()["health"].replace("/healthz", path)

    def get() -> int:
        try:
            with urllib.request.urlopen(url, timeout=10) as page:
                return page.status
        except urllib.error.HTTPError as error:
            return error.code

    return await asyncio.to_thread(get)


async def test_health_follows_the_server_from_start_to_drain(policies: Path) -> None:
    server = await load(config_of(policies, metrics=False))
    await server.start()
    assert await http_status(server) == 503
    assert await http_status(server, "/metrics") == 404
    async with grpc.aio.insecure_channel(str(server.address)) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        stub: Any = PolicyStub(channel)

        async def status(name: str) -> int:
            return (await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)).status

        assert [await status(""), await status("point_u_maze")] == [NOT_SERVING, NOT_SERVING]
        for call in (stub.Act(GOOD), stub.Describe(pb.DescribeRequest()), stub.List(pb.ListRequest())):
            with pytest.raises(grpc.aio.AioRpcError, match="still compiling") as early:
                await call
            assert early.value.code() is grpc.StatusCode.UNAVAILABLE
            assert early.value.trailing_metadata().get("kilolayer-reason") == "not_ready"
        await server.prepare()
        server.open()
        assert [await status(""), await status("point_u_maze")] == [SERVING, SERVING]
        assert await http_status(server) == 200
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await status("ant")
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest(service="point_u_maze"))
        assert (await watch.read()).status == SERVING
        draining = asyncio.create_task(server.drain())
        assert (await watch.read()).status == NOT_SERVING
        assert await http_status(server) == 503  # while it drains
        assert await watch.read() is grpc.aio.EOF
        assert await asyncio.wait_for(draining, timeout=5) is True  # an open watch does not use up the grace of 10 s


async def test_a_blocked_event_loop_is_unready_and_says_so(policies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SILENT_S", 1.0)
    monkeypatch.setattr(server_module, "BEAT_S", 0.02)
    server = await load(config_of(policies, metrics=False))
    await server.start()
    await server.prepare()
    server.open()
    assert await http_status(server) == 200
    time.sleep(1.2)  # noqa: ASYNC251  this thread is the event loop's
    with pytest.raises(urllib.error.HTTPError) as unready:
        urllib.request.urlopen(server.addresses()["health"], timeout=10)  # noqa: ASYNC210
    assert unready.value.code == 503
    assert unready.value.read().decode().splitlines()[1].startswith("the event loop has not responded for ")
    unready.value.close()
    assert await server.drain()


async def test_a_connection_that_says_nothing_does_not_use_up_the_grace(
    policies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_MAX_SEND_S", 0.1)
    server = await load(config_of(policies, metrics=False, grace_s=60.0))
    await server.start()
    with socket.create_connection(("127.0.0.1", port_of(server))) as silent:
        assert await asyncio.to_thread(silent.recv, 1)  # the server has accepted it
        assert await asyncio.wait_for(server.drain(), timeout=10) is True


async def test_drain_answers_accepted_calls_and_refuses_new_ones(
    policies: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    compute, admit, may_compute = Engine.compute, Batcher.admit, threading.Event()
    admitted: list[QueuedRequest] = []

    def remembered(*arguments: Any, **options: Any) -> QueuedRequest:
        admitted.append(admit(*arguments, **options))
        return admitted[-1]

    def held(engine: Engine, kind: Kind, rows: np.ndarray) -> np.ndarray:
        assert may_compute.wait(timeout=30)
        return compute(engine, kind, rows)

    server = await load(config_of(policies, metrics=False))
    await server.start()
    await server.prepare()
    server.open()
    monkeypatch.setattr(Engine, "compute", held)
    monkeypatch.setattr(Batcher, "admit", remembered)
    async with grpc.aio.insecure_channel(str(server.address)) as channel:
        stub: Any = PolicyStub(channel)
        accepted = [asyncio.ensure_future(stub.Act(GOOD, timeout=20)) for _ in range(5)]
        await wait_until(lambda: len(admitted) == 5)
        draining = asyncio.create_task(server.drain())
        await asyncio.sleep(0)  # it has begun
        late = asyncio.ensure_future(stub.Act(GOOD, timeout=20))
        may_compute.set()
        answers = await asyncio.gather(*accepted)
        assert all(len(answer.action) == 2 for answer in answers)
        with pytest.raises(grpc.aio.AioRpcError, match="shutting down") as refused:
            await late
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert refused.value.trailing_metadata().get("kilolayer-reason") == "draining"
        assert await draining is True


async def test_a_server_that_has_compiled_everything_has_its_whole_grace_to_answer(
    policies: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    compute, computing, may_compute = Engine.compute, threading.Event(), threading.Event()

    def held(engine: Engine, kind: Kind, rows: np.ndarray) -> np.ndarray:
        computing.set()
        assert may_compute.wait(timeout=30)
        return compute(engine, kind, rows)

    monkeypatch.setattr(server_module, "_BROKEN_GRACE_S", 0.1)
    server = await load(config_of(policies, metrics=False))
    await server.start()
    await server.prepare()
    server.open()
    stop = asyncio.Event()
    serving = asyncio.create_task(finished_before(stop, server.serve()))
    monkeypatch.setattr(Engine, "compute", held)
    async with grpc.aio.insecure_channel(str(server.address)) as channel:
        stub: Any = PolicyStub(channel)
        accepted = asyncio.ensure_future(stub.Act(GOOD, timeout=20))
        await wait_until(computing.is_set)
        stop.set()
        assert await serving is False
        draining = asyncio.create_task(server.drain())
        await asyncio.sleep(0.3)  # longer than a server that is broken would have
        may_compute.set()
        assert len((await accepted).action) == 2
        assert await draining is True


async def test_a_collector_of_spans_that_does_not_answer_delays_the_end_by_a_moment_only(
    policies: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "_SPANS_S", 0.1)
    released = threading.Event()
    tracing: Any = types.SimpleNamespace(close=lambda: released.wait(timeout=30))
    server = await load(config_of(policies, metrics=False), tracing=tracing)
    await server.start()
    assert await asyncio.wait_for(server.drain(), timeout=10)
    released.set()
    assert "the last spans are lost: their collector did not take them within 0.1 s" in caplog.messages


async def test_metrics_are_served_on_their_own_port(policies: Path) -> None:
    server = await load(config_of(policies))
    await server.start()
    await server.prepare()
    server.open()
    url = server.addresses()["metrics"]
    metrics_port = int(url.removeprefix("http://127.0.0.1:").removesuffix("/metrics"))
    assert 0 != metrics_port != port_of(server)
    assert server.policies_line() == "point_u_maze@1000"
    assert server.addresses()["health"] == url.replace("/metrics", "/healthz")
    async with grpc.aio.insecure_channel(str(server.address)) as channel:
        stub: Any = PolicyStub(channel)
        await stub.Act(GOOD, timeout=10)
    text = await asyncio.to_thread(read, url)
    assert 'kilolayer_requests_total{code="OK",method="Act",policy="point_u_maze"} 1.0\n' in text
    assert 'kilolayer_live_version{policy="point_u_maze"} 1000.0\n' in text
    assert 'device="cpu",' in re.findall(r"^kilolayer_build_info{(.*)} 1.0$", text, re.MULTILINE)[0]
    assert 'actor_depth="4",' in re.findall(r"^kilolayer_policy_info{(.*)} 1.0$", text, re.MULTILINE)[0]
    assert 'kilolayer_total_seconds_bucket{le="0.0001",method="Act",policy="point_u_maze"}' in text
    assert 'kilolayer_total_seconds_bucket{le="1.0",method="Act",policy="point_u_maze"}' in text
    assert "process_resident_memory_bytes" in text
    assert await server.drain() is True
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", metrics_port)) != 0


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


async def test_with_first_batch_rows_are_answered_one_by_one_until_larger_batches_are_compiled(
    policies: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    build, may_build = Engine.build, threading.Event()
    built: list[tuple[Kind, int]] = []

    def held(engine: Engine, kind: Kind, bucket: int) -> Executable:
        assert bucket == 1 or may_build.wait(timeout=30)
        built.append((kind, bucket))
        return build(engine, kind, bucket)

    monkeypatch.setattr(Engine, "build", held)
    registry = CollectorRegistry()
    server = await load(config_of(policies, max_batch_rows=4, serve_when="first-batch"), collectors=registry)
    await server.start()
    await server.prepare()
    server.open()
    serving = asyncio.create_task(server.serve())

    def batches() -> float | None:
        return registry.get_sample_value("kilolayer_batches_total", {"policy": "point_u_maze"})

    async with grpc.aio.insecure_channel(str(server.address)) as channel:
        stub: Any = PolicyStub(channel)
        three = pb.ActRequest(state=[0.5] * 12, goal=[1] * 2, rows=3)
        early = await stub.Act(three, timeout=10)
        assert batches() == 3
        assert await http_status(server) == 200
        may_build.set()
        await wait_until(lambda: len(built) == 7)
        assert built[:3] == [(Kind.ACT, 1), (Kind.SAMPLE, 1), (Kind.SCORE, 1)]
        assert built[3:] == [(Kind.ACT, 4), (Kind.SAMPLE, 4), (Kind.SCORE, 4), (Kind.ACT, 2)]
        late = await stub.Act(three, timeout=10)
        np.testing.assert_allclose(late.action, early.action, atol=1e-6)
    serving.cancel()
    assert await server.drain()


async def test_a_policy_that_cannot_be_computed_any_more_ends_the_server(
    policies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each of the calls before fails by itself."""

    def refuse(*_: object) -> np.ndarray:
        raise RuntimeError("the device says no")

    server = await load(config_of(policies))
    await server.start()
    await server.prepare()
    server.open()
    serving = asyncio.create_task(server.serve())
    monkeypatch.setattr(Engine, "compute", refuse)
    async with grpc.aio.insecure_channel(str(server.address)) as channel:
        stub: Any = PolicyStub(channel)
        for before in range(5):
            assert await http_status(server) == 200, before
            with pytest.raises(grpc.aio.AioRpcError, match="the policy could not be computed") as failed:
                await stub.Act(GOOD, timeout=10)
            assert failed.value.trailing_metadata().get("kilolayer-reason") == "computation_failed"
        with pytest.raises(BrokenError, match="policy point_u_maze cannot be computed any more: 5 batches in a row"):
            await serving
        assert await http_status(server) == 503
    assert await server.drain()


async def test_two_policies_answer_side_by_side(publish: Callable[..., Path], tmp_path: Path) -> None:
    publish(tmp_path / "z", 1, name="zebra")
    publish(tmp_path / "a", 2, name="ant")
    folders = (tmp_path / "z", tmp_path / "a")
    server = await load(
        ServeConfig(policies=folders, listen="127.0.0.1:0", metrics_port=0, metrics=False, max_batch_rows=1)
    )
    await server.start()
    await server.prepare()
    server.open()
    async with grpc.aio.insecure_channel(str(server.address)) as channel:
        stub: Any = PolicyStub(channel)
        state, goal = [0.5, -1, 2, 0], [1, 1]
        answers = {
            name: await stub.Act(pb.ActRequest(policy=name, state=state, goal=goal), timeout=10)
            for name in ("zebra", "ant", "")
        }
        assert [answers[name].policy for name in answers] == ["zebra", "ant", "zebra"]
        assert [answers[name].version for name in answers] == ["1", "2", "1"]
        assert list(answers["zebra"].action) == list(answers[""].action) != list(answers["ant"].action)
        listed = (await stub.List(pb.ListRequest(), timeout=10)).policies
        assert [(entry.policy, entry.is_default) for entry in listed] == [("ant", False), ("zebra", True)]
    await server.drain()


async def test_a_default_that_is_not_served_is_an_error(policies: Path) -> None:
    with pytest.raises(StartupError, match="--default-policy ant is not served; choose one of: point_u_maze"):
        await load(config_of(policies, default_policy="ant"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (Kind.ACT, "1000, compiled for this machine: actions differ from the published ones by 0.05, more than 0.0001"),
        (Kind.SAMPLE, "sampled actions differ from the published ones by 0.05, more than 0.001; publish it again"),
        (Kind.SCORE, "energies differ from the published ones by 0.05, more than "),
    ],
)
async def test_a_policy_that_misses_its_probes_once_compiled_is_not_served(
    policies: Path, monkeypatch: pytest.MonkeyPatch, *, wrong: Kind, message: str
) -> None:
    compute = Engine.compute

    def wrong_by_little(engine: Engine, kind: Kind, rows: np.ndarray) -> np.ndarray:
        return compute(engine, kind, rows) + np.float32(0.05 if kind is wrong else 0)

    monkeypatch.setattr(Engine, "compute", wrong_by_little)
    server = await load(config_of(policies, metrics=False), collectors=CollectorRegistry())
    await server.start()
    with pytest.raises(StartupError, match=re.escape(message)):
        await server.prepare()
    await server.drain()


async def test_requests_larger_than_grpc_takes_are_refused_at_the_start(
    policies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.api.request_bytes._GRPC_MAX_BYTES", 70_000)
    # 100 rows of 4 + 2 + 2 values of at most 8 bytes, and 65,536 bytes besides
    problem = "requests of 100 rows can have 71936 bytes, and gRPC takes at most 70000; use a smaller --max-call-rows"
    with pytest.raises(StartupError, match=problem):
        await load(ServeConfig(policies=(policies,), listen="127.0.0.1:0", metrics_port=0, max_call_rows=100))
