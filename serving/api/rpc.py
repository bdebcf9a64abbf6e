"""The interface between a transport, such as gRPC, and the methods that it serves.

A method gets the bytes of one request and gives the bytes of one reply (`UnaryMethod`), or gets an iterator of requests
and gives an iterator of replies (`StreamMethod`). Both also get an `RpcContext`. These rules hold for every transport:

* A method that refuses raises a `ServingError`. The transport sends its status, message and trailing metadata.
* When the caller is gone (it hung up, its connection broke or its deadline passed), the transport cancels the task that
  runs the method. No other `asyncio.CancelledError` leaves a method.
* Backpressure: the transport asks for the next reply of a stream only after it has sent the one before, and receives a
  request only when the method asks for it. If a peer does not read its replies, its requests are therefore not read.
* A unary method has its reply counted by `RpcContext.hold_reply` before it returns it, unless the reply is small.
* Each call runs in a task of its own.
* Every method declares the role that its callers need (`Method`). With a `Guard`, the transport asks it before it reads
  a request, and before it passes on a message of a stream. The method counts messages with `RpcContext.count_message`.
* Under overload, the transport has an `OverloadCheck` reject calls before it reads them. The caller notices no
  difference.
"""

import dataclasses
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Generic, NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar

from serving.access.roles import Role

_P = ParamSpec("_P")
_R_co = TypeVar("_R_co", covariant=True)


class RpcContext(NamedTuple):
    """The facts about a call that are not in its requests."""

    method: str
    """As on the wire: "/kilolayer.v1.Policy/Act"."""

    deadline_s: float = math.inf
    """When the reply is too late, on the server's monotonic clock."""

    connection: str = ""
    """Names the connection that the call came over. Connections take turns in the queue."""

    caller: str = ""
    """Names the stream that a request came on, or the connection of a unary call; empty: it cannot be told apart."""

    metadata: Callable[[], Mapping[str, str]] = dict
    """Returns the caller's metadata. A function, because reading it takes microseconds and few calls need it."""

    hold_reply: Callable[[int], None] = lambda _size: None
    """Counts the bytes of a unary reply until it is sent. Raises MemoryLimitError if the connection holds too many."""

    token: str = ""
    """The name of the caller's token; empty: it needs none."""

    count_message: Callable[[], None] = lambda: None
    """Counts a message of a stream for the rate of the caller's token. Raises RateLimitError if there are too many."""

    has_span: bool = False
    """Whether the transport makes the span of the call, which is then the current one. False: the method makes it."""

    def timeout_s(self, now_s: float, *, limit_us: int = 0) -> float | None:
        """Return the seconds from `now_s` until the reply is too late; None: no limit.

        Args:
            limit_us: the request's own limit, in microseconds from now; 0: none.
        """
        limit_s = limit_us * 1e-6 if limit_us else math.inf
        timeout_s = min(self.deadline_s - now_s, limit_s)
        return None if timeout_s == math.inf else timeout_s


UnaryMethod: TypeAlias = Callable[[bytes, RpcContext], Awaitable[bytes]]
StreamMethod: TypeAlias = Callable[[AsyncIterator[bytes], RpcContext], AsyncGenerator[bytes]]


@dataclasses.dataclass(frozen=True, slots=True)
class Method(Generic[_P, _R_co]):
    """A method, and the role that its callers need."""

    role: Role
    serve: Callable[_P, _R_co]

    def __call__(self, *arguments: _P.args, **more: _P.kwargs) -> _R_co:
        """Serve a call without asking for the role."""
        return self.serve(*arguments, **more)


class OverloadCheck(Protocol):
    """Rejects calls of unary methods before the transport reads them."""

    @property
    def methods(self) -> Collection[str]:
        """The names of the methods whose calls it checks."""
        ...

    def is_active(self) -> bool:
        """Return whether calls that arrive now are checked. Must be fast: it is called for every call."""
        ...

    def check(self, context: RpcContext) -> None:
        """Check a call that is not read yet.

        Raises:
            OverloadedError: the call is rejected, regardless of its content.
        """
        ...


class RpcService(NamedTuple):
    """A service and its methods by name."""

    name: str
    unary: Mapping[str, Method[[bytes, RpcContext], Awaitable[bytes]]]
    streams: Mapping[str, Method[[AsyncIterator[bytes], RpcContext], AsyncGenerator[bytes]]]
    overload: OverloadCheck | None = None
    """Rejects calls before they are read; None: every call is read."""
