"""Very many calls over streams, cheaply: the same bytes again and again, and every answer compared."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from kilolayer.v1 import policy_pb2 as pb

_PATH = "/kilolayer.v1.Policy/ActStream"
_IN_FLIGHT = 64  # of each stream
_STREAMS = 2
_TOLERANCE = 1e-5  # rows have other last bits in batches of another size
_LIMIT_S = 3600.0


def call(address: str, request: pb.ActRequest, *, count: int, expected: np.ndarray) -> None:
    """Send `request` `count` times over two streams, and check that every answer is `expected: [action_dim]`.

    Raises:
        AssertionError: an answer is missing or another.
        grpc.RpcError: a stream broke.
    """
    shares = [count // _STREAMS + (number < count % _STREAMS) for number in range(_STREAMS)]
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(_STREAMS) as threads:
        for done in [threads.submit(_stream, channel, request, count=share, expected=expected) for share in shares]:
            done.result()


def _stream(channel: grpc.Channel, request: pb.ActRequest, *, count: int, expected: np.ndarray) -> None:
    raw, may_send = request.SerializeToString(), threading.Semaphore(_IN_FLIGHT)

    def requests() -> Iterator[bytes]:
        for _ in range(count):
            may_send.acquire()
            yield raw

    answered, known = 0, set[bytes]()
    for reply in channel.stream_stream(_PATH)(requests(), timeout=_LIMIT_S):
        answered += 1
        may_send.release()
        message = pb.ActResponse.FromString(reply)
        assert not message.HasField("failure"), message.failure
        action = np.array(message.action, np.float32)
        if action.tobytes() not in known:
            np.testing.assert_allclose(action, expected, atol=_TOLERANCE)
            known.add(action.tobytes())
    assert answered == count
