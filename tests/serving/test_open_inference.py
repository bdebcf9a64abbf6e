"""The Open Inference Protocol over real gRPC, compared with Act."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio
import numpy as np
import pytest

from kilolayer.v1 import policy_pb2
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from serving.api.open_inference import open_inference_pb2 as pb
from serving.config import ServeConfig
from serving.loading import load
from tests.open_inference import SERVICE, actions, infer_request, method, refusal, stream, tensor

MODEL = "point_u_maze"
NAN = float("nan")


class Running(Protocol):
    address: str

    def sample(self, name: str, **labels: str) -> float: ...


@pytest.fixture(scope="module")
def channel(running: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(running.address) as channel:
        yield channel


def rows_of(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 4)).astype(np.float32), rng.normal(size=(rows, 2)).astype(np.float32)


def acted(channel: grpc.Channel, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """What Act answers."""
    stub: Any = PolicyStub(channel)
    request = policy_pb2.ActRequest(state=state.ravel().tolist(), goal=goal.ravel().tolist())
    return np.asarray(stub.Act(request, timeout=60).action, np.float32).reshape(len(state), 2)


def infer(channel: grpc.Channel, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    return method(channel, "ModelInfer")(request, timeout=60)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_the_actions_are_those_of_act(channel: grpc.Channel, rows: int) -> None:
    state, goal = rows_of(rows, rows)
    reply = infer(channel, infer_request(state, goal, id="tick 7"))
    assert actions(reply).tolist() == acted(channel, state, goal).tolist()
    assert (reply.model_name, reply.model_version, reply.id) == (MODEL, "1000", "tick 7")


def test_one_goal_serves_every_row(channel: grpc.Channel) -> None:
    state, goal = rows_of(9, 5)
    reply = infer(channel, infer_request(state, goal[:1]))
    assert actions(reply).tolist() == acted(channel, state, goal[0]).tolist()


def test_typed_contents_are_answered_raw(channel: grpc.Channel) -> None:
    state, goal = rows_of(10, 2)
    inputs = [
        tensor(name, values.shape, contents=pb.InferTensorContents(fp32_contents=values.ravel().tolist()))
        for name, values in (("goal", goal), ("state", state))  # in any order
    ]
    reply = infer(channel, pb.ModelInferRequest(model_name=MODEL, inputs=inputs))
    assert actions(reply).tolist() == acted(channel, state, goal).tolist()


def test_naming_the_version_and_the_output_changes_nothing(channel: grpc.Channel) -> None:
    state, goal = rows_of(11, 2)
    named = pb.ModelInferRequest.InferRequestedOutputTensor(name="action")
    reply = infer(channel, infer_request(state, goal, model_version="1000", outputs=[named]))
    assert actions(reply).tolist() == acted(channel, state, goal).tolist()


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (
            infer_request(np.zeros((1, 3)), np.zeros((1, 2))),
            "INVALID_ARGUMENT",
            "state must have shape [rows, 4], got [1, 3]",
        ),
        (
            infer_request(np.array([[0, 0, 0, 0], [0, 0, NAN, 0]]), np.zeros((1, 2))),
            "INVALID_ARGUMENT",
            "state of row 1 (the first is 0) has NaN or infinity; send finite values",
        ),
        (
            infer_request(np.zeros((9, 4)), np.zeros((1, 2))),
            "INVALID_ARGUMENT",
            "a request may have at most 8 rows, got 9; split it into several",
        ),
        (
            infer_request(np.zeros((1, 4)), np.zeros((1, 2)), model_name="ant\n"),
            "NOT_FOUND",
            "there is no policy 'ant\\n'; there are: point_u_maze",
        ),
        (
            infer_request(np.zeros((1, 4)), np.zeros((1, 2)), model_version="7"),
            "NOT_FOUND",
            "policy point_u_maze has no version '7'; there are: 1000",
        ),
    ],
)
def test_refusals_have_the_statuses_of_act(
    channel: grpc.Channel, request_: pb.ModelInferRequest, code: str, message: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        infer(channel, request_)
    assert refusal(refused.value) == (grpc.StatusCode[code], message)


@pytest.mark.parametrize("name", ["ModelInfer", "ModelMetadata", "ServerLive"])
def test_bytes_that_are_no_request_are_refused(channel: grpc.Channel, name: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"{SERVICE}/{name}")(b"\xff" * 7, timeout=60)
    code, message = refusal(refused.value)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == f"the 7 bytes of the request are not a inference.{name}Request message"


def test_the_server_and_its_models_are_described(channel: grpc.Channel) -> None:
    assert method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=60).live
    assert method(channel, "ServerReady")(pb.ServerReadyRequest(), timeout=60).ready
    server = method(channel, "ServerMetadata")(pb.ServerMetadataRequest(), timeout=60)
    assert server.name == "kilolayer"
    assert list(server.extensions) == ["model_configuration", "schedule_policy", "statistics"]
    ready = method(channel, "ModelReady")
    names = [(MODEL, ""), (MODEL, "1000"), (MODEL, "7"), ("ant", "")]
    answers = [ready(pb.ModelReadyRequest(name=name, version=version), timeout=60).ready for name, version in names]
    assert answers == [True, True, False, False]
    about = method(channel, "ModelMetadata")(pb.ModelMetadataRequest(name=MODEL), timeout=60)
    assert (about.name, list(about.versions)) == (MODEL, ["1000"])
    tensors = [(each.name, each.datatype, list(each.shape)) for each in (*about.inputs, *about.outputs)]
    assert tensors == [("state", "FP32", [-1, 4]), ("goal", "FP32", [-1, 2]), ("action", "FP32", [-1, 2])]
    with pytest.raises(grpc.RpcError) as unknown:
        method(channel, "ModelMetadata")(pb.ModelMetadataRequest(name="ant"), timeout=60)
    assert refusal(unknown.value)[0] is grpc.StatusCode.NOT_FOUND


def test_the_configuration_is_that_of_the_server(channel: grpc.Channel) -> None:
    config = method(channel, "ModelConfig")(pb.ModelConfigRequest(name=MODEL), timeout=60).config
    assert (config.name, config.max_batch_size) == (MODEL, 8)
    tensors = [(each.name, each.data_type, list(each.dims)) for each in (*config.input, *config.output)]
    assert tensors == [("state", 11, [4]), ("goal", 11, [2]), ("action", 11, [2])]  # 11 is FP32
    assert config.version_policy.latest.num_versions == 1
    batching = config.dynamic_batching
    assert batching.max_queue_delay_microseconds == 2000  # the default of --max-batch-delay-s
    assert (batching.priority_levels, batching.default_priority_level) == (4, 4)


def test_statistics_count_what_happened(channel: grpc.Channel, running: Running) -> None:
    def statistics(**names: str) -> Any:
        reply = method(channel, "ModelStatistics")(pb.ModelStatisticsRequest(**names), timeout=60)
        (about,) = reply.model_stats
        return about

    def flat(about: Any) -> dict[str, tuple[int, int]]:
        stats = about.inference_stats
        durations = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        counted = {name: (getattr(stats, name).count, getattr(stats, name).ns) for name in durations}
        return counted | {"rows": (about.inference_count, 0), "batches": (about.execution_count, 0)}

    labels = {"method": "ModelInfer", "policy": MODEL}
    before, started_s, began_s = flat(statistics()), time.time(), time.perf_counter()
    counted = [running.sample("requests_total", code=code, **labels) for code in ("OK", "INVALID_ARGUMENT")]
    for rows in (1, 3, 5):
        infer(channel, infer_request(*rows_of(rows, rows)))
    for width in (3, 5):
        with pytest.raises(grpc.RpcError):
            infer(channel, infer_request(np.zeros((1, width)), np.zeros((1, 2))))
    with pytest.raises(grpc.RpcError):
        infer(channel, infer_request(*rows_of(1, 1), model_name="ant"))  # of no model
    about = statistics(name=MODEL, version="1000")
    rose = {name: (count - before[name][0], ns - before[name][1]) for name, (count, ns) in flat(about).items()}
    assert {name: count for name, (count, _) in rose.items()} == {
        "success": 3,
        "fail": 2,
        "queue": 3,
        "compute_input": 3,
        "compute_infer": 3,
        "compute_output": 3,
        "rows": 9,
        "batches": 3,
    }
    parts = sum(rose[name][1] for name in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert 0 < parts < rose["success"][1] < (time.perf_counter() - began_s) * 1e9
    assert (about.name, about.version) == (MODEL, "1000")
    assert started_s * 1e3 - 1 <= about.last_inference <= time.time() * 1e3 + 1
    after = [running.sample("requests_total", code=code, **labels) for code in ("OK", "INVALID_ARGUMENT")]
    assert [now - then for now, then in zip(after, counted, strict=True)] == [3, 2]
    with pytest.raises(grpc.RpcError) as unknown:
        statistics(name="ant")
    assert refusal(unknown.value)[0] is grpc.StatusCode.NOT_FOUND


def test_a_stream_answers_in_order_and_a_bad_request_does_not_end_it(channel: grpc.Channel) -> None:
    count = 100  # more than may be under way
    state, goal = rows_of(12, count)
    expected = np.concatenate([acted(channel, state[i : i + 4], goal[i : i + 4]) for i in range(0, count, 4)])

    def requests() -> Iterator[pb.ModelInferRequest]:
        for index in range(count):
            width = 3 if index == 70 else 4
            yield infer_request(state[index : index + 1, :width], goal[index : index + 1], id=str(index))

    replies = list(stream(channel)(requests(), timeout=60))
    assert [reply.infer_response.id for reply in replies] == [str(index) for index in range(count)]
    for index, reply in enumerate(replies):
        if index == 70:
            assert reply.error_message == "state must have shape [rows, 4], got [1, 3]"
            assert not reply.infer_response.outputs
        else:
            assert not reply.error_message
            np.testing.assert_allclose(actions(reply.infer_response)[0], expected[index], atol=1e-6)


def test_bytes_that_are_no_request_end_the_stream_after_the_answers_before_them(channel: grpc.Channel) -> None:
    good = infer_request(np.zeros((1, 4)), np.zeros((1, 2)), id="a").SerializeToString()
    replies = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")(iter([good, b"\xff" * 7]), timeout=60)
    assert pb.ModelStreamInferResponse.FromString(next(replies)).infer_response.id == "a"
    with pytest.raises(grpc.RpcError) as ended:
        next(replies)
    assert refusal(ended.value)[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_server_that_compiles_is_live_and_not_ready(policies: Path) -> None:
    server = await load(
        ServeConfig(policies=(policies,), listen="127.0.0.1:0", metrics_port=0, metrics=False, max_batch_rows=1)
    )
    await server.start()
    async with grpc.aio.insecure_channel(str(server.address)) as channel:
        live = await method(channel, "ServerLive")(pb.ServerLiveRequest(), timeout=60)
        ready = await method(channel, "ServerReady")(pb.ServerReadyRequest(), timeout=60)
        model = await method(channel, "ModelReady")(pb.ModelReadyRequest(name=MODEL), timeout=60)
        assert (live.live, ready.ready, model.ready) == (True, False, False)
        with pytest.raises(grpc.aio.AioRpcError, match="still compiling") as early:
            await method(channel, "ModelInfer")(infer_request(np.zeros((1, 4)), np.zeros((1, 2))), timeout=60)
        assert early.value.code() is grpc.StatusCode.UNAVAILABLE
    await server.drain()
