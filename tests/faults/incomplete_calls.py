"""A client that opens calls and sends only a part of each request: ADDRESS PATH CALLS BYTES.

It sends BYTES of a request that is said to be one byte longer, for each of CALLS calls on one connection, then waits.
It prints how many of its calls have ended, whenever that changes, and "sent" when everything is sent. It speaks HTTP/2
itself, since no client library leaves a request incomplete, and respects the windows that the server gives.
"""

import select
import socket
import struct
import sys
from collections.abc import Iterator

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_HEADERS, END_STREAM, ACK = 4, 1, 1
INITIAL_WINDOW_SIZE = 4  # a setting
FRAME = 16384


class IncompleteCalls:
    """The calls on one connection.

    Args:
        address: host and port of the server.
        path: of the method.
        calls: how many.
        size: bytes of each request that are sent.
    """

    def __init__(self, address: str, path: str, *, calls: int, size: int) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._received = b""
        self._initial_window = self._window = 65535
        streams = [2 * number + 1 for number in range(calls)]
        self._left = dict.fromkeys(streams, 5 + size)
        self._windows = dict.fromkeys(streams, 65535)
        self._begun: set[int] = set()
        self._length = struct.pack(">BI", 0, size + 1)
        self.ended: set[int] = set()
        self._socket.sendall(HELLO)
        headers = b"\x83\x86" + literal(b"\x04", path) + literal(b"\x01", address)
        headers += literal(b"\x0f\x10", "application/grpc") + b"\0" + text("te") + text("trailers")
        self._socket.sendall(b"".join(frame(HEADERS, END_HEADERS, stream, headers) for stream in streams))

    def run(self) -> None:
        """Send as much as the windows allow, and report what ends, until every call has ended."""
        said_sent = False
        while self._left or len(self.ended) < len(self._windows):
            is_blocked = not self._send()
            if not said_sent and not self._left:
                said_sent = True
                print("sent", flush=True)
            if self._receive(timeout_s=0.5 if is_blocked else 0.0):
                print(len(self.ended), flush=True)

    def _send(self) -> bool:
        """Send a frame of each request, if the windows allow it. Return whether anything was sent."""
        frames = []
        for stream, left in list(self._left.items()):
            size = min(left, self._windows[stream], self._window, FRAME)
            if size <= 0:
                continue
            payload = bytes(size) if stream in self._begun else self._length.ljust(size, b"\0")
            self._begun.add(stream)
            frames.append(frame(DATA, 0, stream, payload))
            self._windows[stream] -= size
            self._window -= size
            self._left[stream] -= size
            if not self._left[stream]:
                del self._left[stream]
        self._socket.sendall(b"".join(frames))
        return bool(frames)

    def _receive(self, *, timeout_s: float) -> bool:
        """Read what the server has sent. Return whether a call has ended."""
        if not select.select([self._socket], [], [], timeout_s)[0]:
            return False
        received = self._socket.recv(1 << 20)
        if not received:
            raise SystemExit("the server closed the connection")
        self._received += received
        before = len(self.ended)
        for kind, flags, stream, payload in self._frames():
            if kind == WINDOW_UPDATE and stream:
                self._windows[stream] += int.from_bytes(payload, "big")
            elif kind == WINDOW_UPDATE:
                self._window += int.from_bytes(payload, "big")
            elif kind == PING and not flags & ACK:
                self._socket.sendall(frame(PING, ACK, 0, payload))
            elif kind == SETTINGS and not flags & ACK:
                self._apply(payload)
            elif kind == GOAWAY:
                raise SystemExit(f"the server ended the connection: {payload!r}")
            elif kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM):
                self.ended.add(stream)
                self._left.pop(stream, None)
        return len(self.ended) > before

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """The complete frames among what was received: kind, flags, stream and payload."""
        start = 0
        while len(self._received) >= start + 9:
            size = int.from_bytes(self._received[start : start + 3], "big")
            end = start + 9 + size
            if len(self._received) < end:
                break
            kind, flags, stream = struct.unpack(">BBI", self._received[start + 3 : start + 9])
            yield kind, flags, stream, self._received[start + 9 : end]
            start = end
        self._received = self._received[start:]

    def _apply(self, settings: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", settings):
            if name == INITIAL_WINDOW_SIZE:
                for stream in self._windows:
                    self._windows[stream] += value - self._initial_window
                self._initial_window = value
        self._socket.sendall(frame(SETTINGS, ACK, 0, b""))


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def text(value: str) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value.encode()


def literal(name: bytes, value: str) -> bytes:
    """A header with a name of the static table."""
    return name + text(value)


if __name__ == "__main__":
    IncompleteCalls(sys.argv[1], sys.argv[2], calls=int(sys.argv[3]), size=int(sys.argv[4])).run()
