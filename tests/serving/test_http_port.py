"""The HTTP port of real servers: Triton's client, the same numbers as over gRPC, batches, settings."""

import asyncio
import builtins
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
import pytest
import tritonclient.http
from prometheus_client import CollectorRegistry
from tritonclient.utils import InferenceServerException

from serving.api.handlers import RpcHandlers
from serving.api.held_bytes import HeldBytes
from serving.api.http_port import http_connections, http_transport
from serving.api.open_inference.service import OpenInferenceService
from serving.batching.batcher import Batcher
from serving.batching.scheduler import BatchingPolicy
from serving.config import ConfigError, ServeConfig
from serving.errors import StartupError
from serving.loading import load
from serving.policies.registry import PolicyRegistry, ServedPolicy
from serving.policies.seen_range import SeenRange
from serving.telemetry.metrics import Metrics
from tests.open_inference import actions, infer_request, method
from tests.serving.batcher_bench import MakeEngine, WaitUntil
from tests.serving.fakes import BUNDLE, MODEL

TRITON: Any = tritonclient.http


class Running(Protocol):
    address: str
    http: str

    def sample(self, name: str, **labels: str) -> float: ...


@pytest.fixture
def client(running: Running) -> Iterator[Any]:
    with TRITON.InferenceServerClient(running.http) as client:
        yield client


def rows_of(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 4)).astype(np.float32), rng.normal(size=(rows, 2)).astype(np.float32)


def inputs_of(state: np.ndarray, goal: np.ndarray, *, binary: bool = True) -> list[Any]:
    inputs: list[Any] = []
    for name, values in (("state", state), ("goal", goal)):
        each = TRITON.InferInput(name, list(values.shape), "FP32")
        each.set_data_from_numpy(values, binary_data=binary)
        inputs.append(each)
    return inputs


def test_tritons_client_learns_what_there_is(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert not client.is_model_ready("ant")
    assert client.get_server_metadata()["name"] == "kilolayer"
    assert client.get_model_metadata(MODEL, "1000")["inputs"][1] == {
        "name": "goal",
        "datatype": "FP32",
        "shape": [-1, 2],
    }
    assert client.get_model_config(MODEL)["max_batch_size"] == 8
    assert client.get_inference_statistics(MODEL)["model_stats"][0]["name"] == MODEL


@pytest.mark.parametrize("binary_input", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("binary_output", [True, False], ids=["binary", "json"])
def test_the_numbers_are_those_of_grpc(running: Running, client: Any, binary_input: bool, binary_output: bool) -> None:
    state, goal = rows_of(20, 5)
    with grpc.insecure_channel(running.address) as channel:
        expected = actions(method(channel, "ModelInfer")(infer_request(state, goal), timeout=10))
    before = running.sample("requests_total", method="ModelInfer", policy=MODEL, code="OK")
    result = client.infer(
        MODEL,
        inputs_of(state, goal, binary=binary_input),
        outputs=[TRITON.InferRequestedOutput("action", binary_data=binary_output)],
        request_id="tick 7",
        timeout=5_000_000,
        priority=1,
    )
    assert result.as_numpy("action").tolist() == expected.tolist()
    assert result.get_response()["id"] == "tick 7"
    assert running.sample("requests_total", method="ModelInfer", policy=MODEL, code="OK") == before + 1


def test_tritons_client_is_told_what_is_wrong(client: Any) -> None:
    state, goal = rows_of(21, 1)
    with pytest.raises(InferenceServerException, match="state must have shape") as invalid:
        client.infer(MODEL, inputs_of(state[:, :3], goal))
    assert invalid.value.status() == "400"
    with pytest.raises(InferenceServerException, match="there is no policy 'ant'"):
        client.infer("ant", inputs_of(state, goal))
    with pytest.raises(InferenceServerException, match="NaN or infinity; send finite values"):
        client.infer(MODEL, inputs_of(state * np.float32(np.nan), goal))
    with pytest.raises(InferenceServerException, match="the content-encoding 'gzip' is not supported"):
        client.infer(MODEL, inputs_of(state, goal), request_compression_algorithm="gzip")
    assert client.infer(MODEL, inputs_of(state, goal)).as_numpy("action").shape == (1, 2)


@pytest.mark.parametrize(
    ("reason", "path", "method", "headers"),
    [
        ("path", "/v3", "GET", {}),
        ("method", "/v2", "POST", {}),
        ("web_page", "/v2", "GET", {"Origin": "https://example.com"}),
        ("compressed", f"/v2/models/{MODEL}/infer", "POST", {"Content-Encoding": "gzip"}),
        ("malformed", f"/v2/models/{MODEL}/infer", "POST", {"Inference-Header-Content-Length": "x"}),
    ],
)
def test_a_refusal_of_http_is_counted(
    running: Running, reason: str, path: str, method: str, headers: dict[str, str]
) -> None:
    before = running.sample("http_refused_total", reason=reason)
    connection = http.client.HTTPConnection(running.http, timeout=60)
    connection.request(method, path, headers=headers)
    assert connection.getresponse().status >= 400
    connection.close()
    assert running.sample("http_refused_total", reason=reason) == before + 1


async def call(address: str, body: bytes) -> Any:
    reader, writer = await asyncio.open_connection(*address.split(":"))
    head = (
        f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    reply = await reader.read()
    writer.close()
    return json.loads(reply.split(b"\r\n\r\n", 1)[1])


async def test_a_hundred_connections_share_batches(make_engine: MakeEngine, wait_until: WaitUntil) -> None:
    engine, metrics = make_engine(max_rows=100), Metrics(CollectorRegistry())
    batching = BatchingPolicy(max_queue_rows=1000, max_queue_age_s=1.0, max_batch_delay_s=0.0)
    batcher = Batcher(engine, policy=batching, metrics=metrics.for_policy(MODEL), clock=engine.clock)
    policies = PolicyRegistry(frozenset({MODEL}), default=MODEL)
    policies.open([ServedPolicy(BUNDLE, batcher, SeenRange(BUNDLE.spec))])
    handlers = RpcHandlers(metrics, clock=engine.clock)
    config = ServeConfig(policies=(BUNDLE.path,), http_port=0)
    transport = http_transport(
        OpenInferenceService(policies, handlers=handlers, metrics=metrics, config=config),
        config,
        handlers=handlers,
        held=HeldBytes(2**29),
        max_body_bytes=2**20,
        max_connections=200,
        metrics=metrics,
    )
    assert transport is not None
    assert config.http_address is not None
    address = str(await transport.start(config.http_address))
    bodies = [
        json.dumps(
            {
                "inputs": [
                    {"name": "state", "datatype": "FP32", "shape": [1, 4], "data": [number, 0, 0, 0]},
                    {"name": "goal", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]},
                ]
            }
        ).encode()
        for number in range(101)
    ]
    engine.hold()
    first = asyncio.create_task(call(address, bodies[0]))
    await wait_until(lambda: len(engine.batches) == 1)
    rest = [asyncio.create_task(call(address, body)) for body in bodies[1:]]
    await wait_until(lambda: batcher.queue_rows == 100)
    engine.release()
    replies = await asyncio.gather(first, *rest)
    assert [reply["outputs"][0]["data"] for reply in replies] == [[number, 10 * number] for number in range(101)]
    assert [len(batch) for batch in engine.batches] == [1, 100]
    await transport.stop(10)
    await batcher.drain(grace_s=10)


async def test_without_its_library_the_port_names_the_command(policies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "serving.api.http.gateway":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StartupError) as error:
        await load(ServeConfig(policies=(policies,), http_port=0), collectors=CollectorRegistry())
    assert str(error.value) == (
        "--http-port needs the extra `http`: pip install -e '.[http]'; or leave out --http-port"
    )


def test_a_part_of_the_connections_is_for_http() -> None:
    off, on = (ServeConfig(policies=(BUNDLE.path,), http_port=port) for port in (None, 8000))
    assert [http_connections(off, 1000), http_connections(on, 1000), http_connections(on, 10**6)] == [0, 250, 1024]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"http_port": 65536}, "--http-port must be from 0 to 65535, got 65536; 0 picks a free port"),
        ({"http_port": 9464}, "--http-port must differ from --metrics-port, got 9464 for both; 0 picks a free port"),
        (
            {"http_port": 50051},
            "--http-port must differ from the port of --listen, got 50051 for both; 0 picks a free port",
        ),
    ],
)
def test_a_wrong_port_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        ServeConfig(policies=(BUNDLE.path,), **fields)
    assert str(error.value) == message


def test_the_port_is_on_the_host_of_listen() -> None:
    def address(**fields: Any) -> str:
        return str(ServeConfig(policies=(BUNDLE.path,), **fields).http_address)

    assert address() == "None"
    assert address(http_port=8000, listen="0.0.0.0:1") == "0.0.0.0:8000"
    assert address(http_port=8000, listen="unix:/tmp/s") == "127.0.0.1:8000"
