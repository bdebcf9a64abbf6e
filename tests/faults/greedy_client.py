"""A client that opens streams, sends requests and never reads a reply: ADDRESS STREAMS REQUESTS ROWS.

It prints how many of its calls the server has ended, whenever that changes. Their status is not known: the library
gives INTERNAL for a call that ends while a message is being sent.
"""

import asyncio
import sys
from typing import Any

import grpc
import grpc.aio

from kilolayer.v1 import policy_pb2 as pb


async def main(address: str, streams: int, requests: int, rows: int) -> None:
    """Open the streams, send, and wait until every stream has ended."""
    request = pb.ActRequest(state=[0.1] * 4 * rows, goal=[0.2] * 2 * rows).SerializeToString()
    ended = 0
    # Small windows: the server cannot send more than 64 KiB of replies to a stream that is not read.
    options = [("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        method: Any = channel.stream_stream("/kilolayer.v1.Policy/ActStream")

        async def send() -> None:
            call = method()
            try:
                for _ in range(requests):
                    await call.write(request)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                pass  # the call has ended
            await call.code()
            nonlocal ended
            ended += 1
            print(ended, flush=True)

        await asyncio.gather(*(send() for _ in range(streams)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
