"""Tools that were written for Triton, driving a policy: tritonclient, and perf_analyzer where it is installed."""

import csv
import queue
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

MODEL = "point_u_maze"
TRITON: Any = tritonclient.grpc
TRITON_AIO: Any = tritonclient.grpc.aio


class Running(Protocol):
    address: str

    def sample(self, name: str, **labels: str) -> float: ...


@pytest.fixture
def client(running: Running) -> Iterator[Any]:
    with TRITON.InferenceServerClient(running.address) as client:
        yield client


def inputs_of(state: np.ndarray, goal: np.ndarray) -> list[Any]:
    inputs: list[Any] = []
    for name, values in (("state", state), ("goal", goal)):
        each = TRITON.InferInput(name, list(values.shape), "FP32")
        each.set_data_from_numpy(values.astype(np.float32))
        inputs.append(each)
    return inputs


def rows_of(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 4)), rng.normal(size=(rows, 2))


def action(client: Any, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    return client.infer(MODEL, inputs_of(state, goal), client_timeout=10).as_numpy("action")


def test_a_client_learns_what_there_is(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert not client.is_model_ready("ant")
    assert client.get_server_metadata(as_json=True)["name"] == "kilolayer"
    metadata = client.get_model_metadata(MODEL, as_json=True)
    assert metadata["inputs"] == [
        {"name": "state", "datatype": "FP32", "shape": ["-1", "4"]},
        {"name": "goal", "datatype": "FP32", "shape": ["-1", "2"]},
    ]
    config = client.get_model_config(MODEL, as_json=True)["config"]
    assert (config["max_batch_size"], config["output"][0]["data_type"]) == (8, "TYPE_FP32")
    # What a client of the whole of Triton's messages cannot place, it would keep as unknown fields.
    whole = client.get_model_config(MODEL)
    again = type(whole).FromString(whole.SerializeToString())
    again.DiscardUnknownFields()
    assert again == whole


def test_a_client_gets_actions_and_sees_them_counted(client: Any) -> None:
    def counted() -> Any:
        return client.get_inference_statistics(MODEL).model_stats[0]

    before = counted()
    state, goal = rows_of(1, 3)
    result = client.infer(MODEL, inputs_of(state, goal), request_id="one", priority=1, timeout=5_000_000)
    assert result.get_response().id == "one"
    together = result.as_numpy("action")
    assert (together.shape, together.dtype) == ((3, 2), np.float32)
    alone = np.concatenate([action(client, state[i : i + 1], goal[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    after = counted()
    assert after.inference_count - before.inference_count == 6
    assert after.inference_stats.queue.count - before.inference_stats.queue.count == 4
    assert after.inference_stats.success.ns > before.inference_stats.success.ns


def test_a_client_is_told_what_is_wrong(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="state must have shape") as invalid:
        client.infer(MODEL, inputs_of(np.zeros((1, 3)), np.zeros((1, 2))))
    assert invalid.value.status() == "StatusCode.INVALID_ARGUMENT"
    with pytest.raises(InferenceServerException, match="there is no policy 'ant'") as unknown:
        client.infer("ant", inputs_of(np.zeros((1, 4)), np.zeros((1, 2))))
    assert unknown.value.status() == "StatusCode.NOT_FOUND"


def test_a_stream_of_a_client_keeps_its_order(client: Any) -> None:
    state, goal = rows_of(2, 20)
    results: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: results.put((result, error)))
    for index in range(20):
        width = 3 if index == 7 else 4
        inputs = inputs_of(state[index : index + 1, :width], goal[index : index + 1])
        client.async_stream_infer(MODEL, inputs, request_id=str(index))
    answers = [results.get(timeout=60) for _ in range(20)]
    client.stop_stream()
    for index, (result, error) in enumerate(answers):
        if index == 7:
            assert (result, error.message()) == (None, "state must have shape [rows, 4], got [1, 3]")
        else:
            assert error is None
            assert result.get_response().id == str(index)
            expected = action(client, state[index : index + 1], goal[index : index + 1])
            np.testing.assert_allclose(result.as_numpy("action"), expected, atol=1e-6)


async def test_an_asynchronous_client_gets_the_same(client: Any, running: Running) -> None:
    state, goal = rows_of(3, 4)
    expected = action(client, state, goal)

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for index in range(4):
            inputs = inputs_of(state[index : index + 1], goal[index : index + 1])
            yield {"model_name": MODEL, "inputs": inputs, "request_id": str(index)}

    async with TRITON_AIO.InferenceServerClient(running.address) as aio_client:
        assert await aio_client.is_model_ready(MODEL)
        result = await aio_client.infer(MODEL, inputs_of(state, goal), client_timeout=10)
        np.testing.assert_array_equal(result.as_numpy("action"), expected)
        answers = [answer async for answer in aio_client.stream_infer(requests())]
    assert [error for _, error in answers] == [None] * 4
    assert [result.get_response().id for result, _ in answers] == ["0", "1", "2", "3"]
    streamed = np.concatenate([result.as_numpy("action") for result, _ in answers])
    np.testing.assert_allclose(streamed, expected, atol=1e-6)


def find_perf_analyzer() -> str:
    """The program; skips, saying what is missing, where it is not installed as CONTRIBUTING.md tells."""
    program = shutil.which("perf_analyzer")
    if program is None:
        pytest.skip("perf_analyzer is not on the PATH; CONTRIBUTING.md says how to install it")
    tried = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"perf_analyzer does not start: {tried.stderr.strip()}; CONTRIBUTING.md says what it needs")
    return program


@pytest.mark.parametrize("streaming", [False, True], ids=["calls", "stream"])
def test_perf_analyzer_measures_a_policy(running: Running, tmp_path: Path, streaming: bool) -> None:
    program, report = find_perf_analyzer(), tmp_path / "report.csv"
    names = ("OK", "INVALID_ARGUMENT")
    counted = {"method": "ModelStreamInfer" if streaming else "ModelInfer", "policy": MODEL}
    before = [running.sample("requests_total", code=code, **counted) for code in names]
    how = ["--async", "--streaming"] if streaming else ["--sync"]
    command = [program, "-m", MODEL, "-i", "grpc", "-u", running.address, "-b", "2", "--concurrency-range", "1:2", *how]
    limits = ["--measurement-interval", "500", "--stability-percentage", "999", "-f", str(report)]
    done = subprocess.run([*command, *limits], capture_output=True, text=True, check=False, timeout=480)
    assert done.returncode == 0, done.stdout + done.stderr
    with report.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["Concurrency"] for row in rows] == ["1", "2"]
    for row in rows:
        assert float(row["InferRequests/Second"]) > 0
        assert 0 < float(row["p50 latency"]) <= float(row["p99 latency"])
        assert float(row["Server Compute Infer"]) > 0
    answered, refused = (
        running.sample("requests_total", code=code, **counted) - then for code, then in zip(names, before, strict=True)
    )
    assert answered > 0
    assert refused == 0
