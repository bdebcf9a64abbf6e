"""The reference for the server: the same service and messages, answered immediately with stored actions.

    python benchmarks/_echo.py --action-dim 8 --state-dim 29

Runs as a separate process, prints its address as the server does, and ends on SIGTERM.
"""

import asyncio
import dataclasses
import functools
import gc
import signal
import sys
from typing import Any

import grpc
import grpc.aio
import numpy as np
import tyro
import uvloop

from kilolayer.v1 import policy_pb2 as pb

_PENDING_CALLS = 65536  # the server's setting
_STOP_S = 1.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Answer every request with one stored action per row."""

    state_dim: int
    """Number of values in a state."""
    action_dim: int
    """Number of values in an action."""


async def serve(sizes: Sizes) -> None:
    """Serve until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    options = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", -1),
        ("grpc.server.max_pending_requests", _PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING_CALLS),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((handlers(sizes),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gc.collect()
    gc.freeze()
    print(f"ready: grpc=127.0.0.1:{port}", file=sys.stderr, flush=True)
    await stop.wait()
    await server.stop(_STOP_S)


def handlers(sizes: Sizes) -> grpc.GenericRpcHandler:
    """Return the handlers of Act and ActStream."""

    @functools.cache
    def response(rows: int) -> pb.ActResponse:
        action = np.random.default_rng(rows).uniform(-1, 1, rows * sizes.action_dim)
        return pb.ActResponse(
            action=action.tolist(), policy="echo", version="1", queue_us=100, compute_us=1000, batch_rows=rows
        )

    def answer(raw: bytes) -> pb.ActResponse:
        return response(len(pb.ActRequest.FromString(raw).state) // sizes.state_dim)

    async def act(raw: bytes, _context: Any) -> pb.ActResponse:
        return answer(raw)

    async def act_stream(_requests: Any, context: Any) -> None:
        while (raw := await context.read()) is not grpc.aio.EOF:
            await context.write(answer(raw))

    def serialize(message: pb.ActResponse) -> bytes:
        return message.SerializeToString()

    methods = {
        "Act": grpc.unary_unary_rpc_method_handler(act, response_serializer=serialize),
        "ActStream": grpc.stream_stream_rpc_method_handler(act_stream, response_serializer=serialize),
    }
    return grpc.method_handlers_generic_handler("kilolayer.v1.Policy", methods)


if __name__ == "__main__":
    uvloop.run(serve(tyro.cli(Sizes)))  # the server's event loop
