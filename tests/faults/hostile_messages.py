"""Malformed and hostile messages for every method of the server, and the statuses that may answer them.

Hypothesis builds structured messages, some of which fit the policy. From each, `variants` derives many more: pieces cut
out, replaced or repeated, bits flipped. `send` sends them as they are, without a client library that would refuse them.
"""

import contextlib
import dataclasses
import random
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import hypothesis
from google.protobuf.message import Message
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthListRequest
from hypothesis import strategies as st

from kilolayer.v1 import policy_pb2 as pb
from serving.api.open_inference import open_inference_pb2 as inference

POLICY, INFERENCE, HEALTH = "/kilolayer.v1.Policy/", "/inference.GRPCInferenceService/", "/grpc.health.v1.Health/"
EXPECTED = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
"""How a server may end a hostile call; UNKNOWN, INTERNAL and CANCELLED would be a fault of the server."""
ALL_CHECKS: Sequence[Any] = list(hypothesis.HealthCheck)
"""Hypothesis's checks of how fast and how large examples are."""
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What a client sends first, here without any setting."""
_TIMEOUT_S = 120.0
_LONG = 60_000  # characters of a long name; larger messages are refused by their size
_STREAM_LENGTH = 8

_FLOATS = st.floats(width=32) | st.integers(-3, 3).map(float)  # NaN and infinity too
_INTEGERS = st.sampled_from([0, 1, 3, 2**31 - 1]) | st.integers(0, 2**31 - 1)
_LARGE = st.sampled_from([0, 1, 2**63, 2**64 - 1])
_NAMES = st.sampled_from(
    ["", "point_u_maze", "a\nb", '{"level": "INFO"}\n', "\x1b[31mred\x1b[0m", "\u2028\x00\x9b", "n" * _LONG]
) | st.text(max_size=8)


@dataclasses.dataclass(frozen=True)
class HostileCall:
    """One message for one method."""

    path: str
    raw: bytes


def _values(*fitting: int) -> st.SearchStrategy[list[float]]:
    """Lists of numbers, most of which have a length that fits."""
    small = st.floats(-9, 9, width=32)
    sized = st.sampled_from(fitting).flatmap(lambda size: st.lists(small, min_size=size, max_size=size))
    return sized | sized | st.lists(_FLOATS, max_size=40)


_PLAIN_ACT = st.builds(pb.ActRequest, state=_values(4, 8), goal=_values(2), mode=st.sampled_from([0, 1]))
_ACT = _PLAIN_ACT | st.builds(
    pb.ActRequest,
    policy=_NAMES,
    version=_NAMES,
    robot_id=_NAMES,
    state=_values(4, 8),
    goal=_values(2, 4),
    rows=_INTEGERS,
    mode=st.integers(0, 5),
    candidates=_INTEGERS,
    seed=_LARGE,
    priority=_INTEGERS,
    sequence=_LARGE,
    timeout_us=_LARGE,
)
_PLAIN_SCORE = st.builds(pb.ScoreRequest, state=_values(4), action=_values(2), goal=_values(2))
_SCORE = _PLAIN_SCORE | st.builds(
    pb.ScoreRequest, policy=_NAMES, state=_values(4, 8), action=_values(2, 4), goal=_values(2, 4), rows=_INTEGERS
)
_DIMENSIONS = st.integers(0, 6) | st.integers(-(2**63), 2**63 - 1)
_PARAMETERS = st.dictionaries(
    _NAMES | st.sampled_from(["priority", "timeout", "robot_id"]),
    st.builds(inference.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1))
    | st.builds(inference.InferParameter, string_param=_NAMES),
    max_size=2,
)
_TENSORS = st.builds(
    inference.ModelInferRequest.InferInputTensor,
    name=st.sampled_from(["state", "goal"]) | _NAMES,
    datatype=st.sampled_from(["FP32", "FP32", "FP64", "BYTES", ""]),
    shape=st.lists(_DIMENSIONS, max_size=3) | st.sampled_from([[1, 4], [2, 4], [1, 2], [2, 2]]),
    contents=st.none() | st.builds(inference.InferTensorContents, fp32_contents=_values(2, 4, 8)),
)
_INFER = st.builds(
    inference.ModelInferRequest,
    model_name=_NAMES,
    model_version=_NAMES,
    id=_NAMES,
    inputs=st.lists(_TENSORS, max_size=3),
    raw_input_contents=st.lists(st.binary(max_size=40) | st.sampled_from([bytes(16), bytes(8)]), max_size=3),
    parameters=_PARAMETERS,
)
_BY_NAME = st.builds(inference.ModelReadyRequest, name=_NAMES, version=_NAMES)
_MESSAGES: dict[str, st.SearchStrategy[Message]] = {
    POLICY + "Act": _ACT,
    POLICY + "Score": _SCORE,
    POLICY + "Describe": st.builds(pb.DescribeRequest, policy=_NAMES, version=_NAMES),
    POLICY + "List": st.builds(pb.ListRequest),
    POLICY + "Report": st.builds(pb.ReportRequest, policy=_NAMES),
    POLICY + "NoSuchMethod": _ACT,
    INFERENCE + "ServerReady": st.builds(inference.ServerReadyRequest),
    INFERENCE + "ModelReady": _BY_NAME,
    INFERENCE + "ModelMetadata": _BY_NAME,
    INFERENCE + "ModelConfig": _BY_NAME,
    INFERENCE + "ModelStatistics": _BY_NAME,
    INFERENCE + "ModelInfer": _INFER,
    HEALTH + "Check": st.builds(HealthCheckRequest, service=_NAMES),
    HEALTH + "List": st.builds(HealthListRequest),
}
_STREAMS = {POLICY + "ActStream": POLICY + "Act", INFERENCE + "ModelStreamInfer": INFERENCE + "ModelInfer"}
_METHODS = [*_MESSAGES, *(path for path in [POLICY + "Act", POLICY + "Score", INFERENCE + "ModelInfer"] * 3)]


@st.composite
def structured_calls(draw: st.DrawFn) -> HostileCall:
    """Calls whose messages can be parsed; half of them have methods that compute."""
    path = draw(st.sampled_from(_METHODS))
    return HostileCall(path, draw(_MESSAGES[path]).SerializeToString())


def variants(call: HostileCall, rng: random.Random, *, count: int) -> Iterator[HostileCall]:
    """Yield `call` and `count - 1` calls made from it."""
    yield call
    for _ in range(count - 1):
        yield dataclasses.replace(call, raw=_mutated(call.raw, rng))


def send(channel: grpc.Channel, calls: Sequence[HostileCall]) -> Counter[grpc.StatusCode]:
    """Send all calls together, and those of a method that has a stream there too; return the statuses of their ends."""
    futures = [channel.unary_unary(call.path).future(call.raw, timeout=_TIMEOUT_S) for call in calls]
    statuses = Counter(future.code() for future in futures)
    for path, unary in _STREAMS.items():
        messages = [call.raw for call in calls if call.path == unary][:_STREAM_LENGTH]
        if messages:
            statuses[_end_of_stream(channel, path, messages)] += 1
    return statuses


def send_many(channel: grpc.Channel, count: int, *, per_example: int = 8, seed: int = 0) -> Counter[grpc.StatusCode]:
    """Send at least `count` calls: `per_example` variants of each of hypothesis's examples. Return all statuses."""
    statuses: Counter[grpc.StatusCode] = Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=-(-count // per_example),
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=ALL_CHECKS,
    )
    @hypothesis.given(call=structured_calls(), number=st.integers(0, 2**32))
    def example(call: HostileCall, number: int) -> None:
        statuses.update(send(channel, list(variants(call, random.Random(number), count=per_example))))

    while statuses.total() < count:  # hypothesis may stop early, once it has seen every example that it can think of
        example()
    return statuses


def speak_no_http(address: str, *, count: int, seed: int = 0) -> None:
    """Open connections that send bytes which are no HTTP/2, or only the beginning of it, and wait for their end."""
    rng = random.Random(seed)
    host, _, port = address.rpartition(":")
    for number in range(count):
        start = (b"", HTTP2_HELLO[:-9], HTTP2_HELLO, b"GET /metrics HTTP/1.1\r\n\r\n")[number % 4]
        peer = socket.create_connection((host, int(port)), timeout=_TIMEOUT_S)
        # The server may reset the connection before it has read everything: that is a refusal too.
        with peer, contextlib.suppress(ConnectionError):
            peer.sendall(start + rng.randbytes(rng.randrange(1, 5000)))
            while peer.recv(65536):
                pass


def _end_of_stream(channel: grpc.Channel, path: str, messages: Sequence[bytes]) -> grpc.StatusCode:
    stream = channel.stream_stream(path)(iter(messages), timeout=_TIMEOUT_S)
    try:
        for _ in stream:
            pass
    except grpc.RpcError:
        pass
    return stream.code()


def _mutated(raw: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
    piece = raw[start:end]
    match rng.randrange(6):
        case 0:
            return raw[:end]
        case 1:
            return raw[:start] + raw[end:]
        case 2:
            return raw[:start] + rng.randbytes(len(piece)) + raw[end:]
        case 3:
            return raw[:end] + piece + raw[end:]
        case 4:
            return rng.randbytes(rng.randrange(80))
        case _:
            flipped = bytearray(raw or b"\0")
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
            return bytes(flipped)
