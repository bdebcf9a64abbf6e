"""HeldBytes: counts the bytes that a server holds for each connection, and limits them.

Held are: a fixed amount for every open call, requests from their arrival until their reply is sent, and replies until
they are sent.

A connection may hold as many bytes as the server has free. One connection therefore holds at most 1/2 of the server's
limit, n connections hold at most n/(n + 1) of it, and a new connection always finds room. The rule is that of dynamic
thresholds for shared buffers (Choudhury and Hahne, 1998, https://doi.org/10.1109/90.664262). A connection that holds
more than half of what is free has no room: its streams are not read from. One that holds more than what is free is over
its limit: its calls are ended.
"""


class HeldBytes:
    """The bytes that a server holds.

    Args:
        max_bytes: limit of the whole server.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.total = 0
        """Bytes held for all connections."""
        self._connections: dict[str, Connection] = {}

    def connection(self, peer: str) -> "Connection":
        """Return the connection of the address `peer`. Hold something for it before the next call of this method."""
        connection = self._connections.get(peer)
        if connection is None:
            connection = self._connections[peer] = Connection(self, peer)
        return connection

    def forget(self, peer: str) -> None:
        """Drop a connection for which nothing is held."""
        del self._connections[peer]


class Connection:
    """The bytes that a server holds for one connection; compared by identity."""

    __slots__ = ("_server", "held", "peer", "released", "slice_bytes", "slice_s")

    def __init__(self, server: HeldBytes, peer: str) -> None:
        self._server = server
        self.peer = peer
        self.held = 0
        self.released = 0
        """Bytes that were held and no longer are, of all time. While it does not grow, the peer reads nothing."""
        self.slice_s = 0.0
        """When the present slice of time began (`serving.api.read_gate`)."""
        self.slice_bytes = 0
        """Bytes of requests that its streams have read in this slice."""

    def hold(self, size: int) -> None:
        """Count `size` more bytes."""
        self.held += size
        self._server.total += size

    def release(self, size: int) -> None:
        """Count `size` fewer bytes."""
        self.held -= size
        self.released += size
        self._server.total -= size
        if not self.held:
            self._server.forget(self.peer)

    @property
    def has_room(self) -> bool:
        """Whether its streams are read from."""
        return 2 * self.held <= self._server.max_bytes - self._server.total

    def fits(self, size: int) -> bool:
        """Return whether its calls go on if `size` more bytes are held."""
        return self.held + size <= self._server.max_bytes - self._server.total - size

    @property
    def is_over(self) -> bool:
        """Whether its calls are ended."""
        return self.held > self._server.max_bytes - self._server.total
