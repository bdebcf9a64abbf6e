"""The gRPC service `kilolayer.v1.Policy`: protobuf to arrays and back, nothing else.

Requests are parsed here rather than by gRPC, so that bytes which are no request get a status and a message of ours.
Every call passes through one wrapper, which counts its outcome and turns errors into statuses.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message

from kilolayer.v1 import policy_pb2 as pb
from policy.bundle import Bundle
from policy.spec import PolicySpec
from serving.batcher import Batcher
from serving.errors import InvalidRequestError, NotFoundError, ServingError, UnavailableError, UnexpectedError, echo
from serving.metrics import NO_POLICY, UNKNOWN_POLICY, Metrics

_LOGGER = logging.getLogger(__name__)

SERVICE_NAME = "kilolayer.v1.Policy"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclasses.dataclass(frozen=True)
class Offer:
    """One version of a policy that answers calls."""

    bundle: Bundle
    batcher: Batcher

    @property
    def version(self) -> str:
        """As clients name it."""
        return str(self.bundle.version)


class PolicyService:
    """Answers Act, Describe and List; UNAVAILABLE until `open` gives it something to offer.

    Args:
        policies: names of the policies that will be offered.
        default: the one of them that answers calls which name none.
        max_rows: most rows in one Act.
        metrics: receives the outcome of every call.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        policies: frozenset[str],
        *,
        default: str,
        max_rows: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policies = policies
        self._default = default
        self._max_rows = max_rows
        self._metrics = metrics
        self._clock = clock
        self._offers: Mapping[str, Offer] = {}
        self._closing = False
        self._closed = asyncio.Event()

    def open(self, offers: Mapping[str, Offer]) -> None:
        """From now on answer with `offers`, by policy."""
        self._offers = offers

    def close(self) -> None:
        """From now on hold new calls; they are refused with UNAVAILABLE by `let_go`.

        A caller that were refused at once would try again on the same connection, and gRPC cancels without a word
        what it has not yet handed to us when it shuts down. One that waits sends nothing.
        """
        self._closing = True

    def let_go(self) -> None:
        """Refuse the calls that were held, now that gRPC has told their connections to close."""
        self._closed.set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """The methods, to be added to a server."""
        methods = {
            "Act": self._method("Act", pb.ActRequest, answer=self._act),
            "Describe": self._method("Describe", pb.DescribeRequest, answer=self._describe),
            "List": self._method("List", pb.ListRequest, answer=self._list),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def _act(self, request: pb.ActRequest, context: Context) -> pb.ActResponse:
        offer = self._find(request.policy, version=request.version)
        rows = decode_rows(request, offer.bundle.spec, max_rows=self._max_rows)
        answer = await offer.batcher.submit(rows, timeout_s=_remaining_s(context))
        return pb.ActResponse(
            action=answer.action.ravel().tolist(),
            policy=offer.bundle.spec.name,
            version=offer.version,
            sequence=request.sequence,
            queue_us=round(answer.queue_s * 1e6),
            compute_us=round(answer.compute_s * 1e6),
            batch_rows=answer.batch_rows,
        )

    async def _describe(self, request: pb.DescribeRequest, _context: Context) -> pb.DescribeResponse:
        offer = self._find(request.policy, version=request.version)
        return pb.DescribeResponse(
            spec=_encode_spec(offer.bundle.spec),
            version=offer.version,
            manifest_sha256=offer.bundle.manifest_sha256,
            max_rows=self._max_rows,
        )

    async def _list(self, _request: pb.ListRequest, _context: Context) -> pb.ListResponse:
        entries = [
            pb.PolicyEntry(
                policy=name,
                versions=[offer.version],
                live_version=offer.version,
                is_default=name == self._default,
            )
            for name, offer in sorted(self._ready_offers().items())
        ]
        return pb.ListResponse(policies=entries)

    def _ready_offers(self) -> Mapping[str, Offer]:
        if not self._offers:
            raise UnavailableError("the server is still compiling; wait until its health says SERVING")
        return self._offers

    def _find(self, policy: str, *, version: str) -> Offer:
        """The offer that a request means; empty names mean the default policy and the live version."""
        offers = self._ready_offers()
        offer = offers.get(policy or self._default)
        if offer is None:
            raise NotFoundError(f"there is no policy {echo(policy)}; there are: {', '.join(sorted(offers))}")
        if version not in ("", offer.version):
            name = offer.bundle.spec.name
            raise NotFoundError(f"policy {name} has no version {echo(version)}; there are: {offer.version}")
        return offer

    def _label(self, request: Message) -> str:
        """The policy that a request means, as a metric label."""
        if not isinstance(request, pb.ActRequest | pb.DescribeRequest):
            return NO_POLICY
        name = request.policy or self._default
        return name if name in self._policies else UNKNOWN_POLICY

    def _method(
        self, method: str, request_type: type[Message], *, answer: Callable[[Any, Context], Awaitable[Message]]
    ) -> "grpc.RpcMethodHandler[bytes, Message]":
        """Wrap `answer`: parse the request, count the outcome, and let only statuses and messages of ours out."""

        async def handle(raw: bytes, context: Context) -> Message:
            started_s = self._clock()
            label = UNKNOWN_POLICY

            def count(code: grpc.StatusCode) -> None:
                self._metrics.requests.labels(method, label, code.name).inc()
                if method == "Act":
                    self._metrics.total_seconds.labels(label).observe(self._clock() - started_s)

            try:
                request = _parse(raw, request_type)
                label = self._label(request)
                if self._closing:
                    await self._closed.wait()
                    raise UnavailableError("the server is shutting down; connect to another, or again in a moment")
                response = await answer(request, context)
            except asyncio.CancelledError:
                if _caller_is_gone():
                    count(_code_of_cancellation(context))
                    raise
                # Let out, a CancelledError that is not the caller's would leave the caller without any answer.
                _LOGGER.exception("%s was cancelled from inside", method)
                failure: ServingError = UnexpectedError()
            except ServingError as error:
                failure = error
            except Exception:
                _LOGGER.exception("%s failed", method)
                failure = UnexpectedError()
            else:
                count(grpc.StatusCode.OK)
                return response
            count(failure.status)
            return await context.abort(failure.status, str(failure), failure.trailers)

        return grpc.unary_unary_rpc_method_handler(handle, response_serializer=_serialize)


def decode_rows(request: pb.ActRequest, spec: PolicySpec, *, max_rows: int) -> np.ndarray:
    """The rows of a request, each a state and its goal side by side: [rows, state_dim + goal_dim] float32.

    Raises:
        InvalidRequestError: the sizes do not fit the policy or the cap, or a value is NaN or infinite.
    """
    state_dim, goal_dim = spec.state_dim, spec.goal_dim
    state_size, goal_size = len(request.state), len(request.goal)
    row_count, rest = divmod(state_size, state_dim)
    if rest or not row_count:
        raise InvalidRequestError(
            f"state must hold rows * {state_dim} values for at least one row of {spec.name}, not {state_size}"
        )
    if row_count > max_rows:
        raise InvalidRequestError(f"one call may hold {max_rows} rows, not {row_count}; split it into several")
    if goal_size not in (goal_dim, row_count * goal_dim):
        every_row = f" or {row_count * goal_dim} for {row_count} rows" if row_count > 1 else ""
        raise InvalidRequestError(f"goal must hold {goal_dim} values{every_row} of {spec.name}, not {goal_size}")
    rows = np.empty((row_count, state_dim + goal_dim), np.float32)
    rows[:, :state_dim] = np.asarray(request.state, np.float32).reshape(row_count, state_dim)
    rows[:, state_dim:] = np.asarray(request.goal, np.float32).reshape(-1, goal_dim)
    finite = np.isfinite(rows)
    if not finite.all():
        bad = int(np.argmin(finite.all(axis=1)))
        field = "goal" if finite[bad, :state_dim].all() else "state"
        raise InvalidRequestError(f"{field} of row {bad} (the first is 0) holds NaN or infinity; send finite values")
    return rows


def _encode_spec(spec: PolicySpec) -> pb.PolicySpec:
    """The message bears the names of the dataclass, and sizes for those who need no names."""
    return pb.PolicySpec(
        state_dim=spec.state_dim, goal_dim=spec.goal_dim, action_dim=spec.action_dim, **dataclasses.asdict(spec)
    )


def _parse(raw: bytes, request_type: type[Message]) -> Message:
    try:
        return request_type.FromString(raw)
    except DecodeError as error:
        name = request_type.DESCRIPTOR.full_name
        raise InvalidRequestError(f"the {len(raw)} bytes of the request are not a {name} message") from error


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _caller_is_gone() -> bool:
    """Whether the current call's own task is being cancelled, as gRPC does when its caller hangs up or times out."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _code_of_cancellation(context: Context) -> grpc.StatusCode:
    """What the caller sees: gRPC cancels a call for its deadline as it does for a caller that hangs up."""
    remaining_s = _remaining_s(context)
    timed_out = remaining_s is not None and remaining_s <= 0
    return grpc.StatusCode.DEADLINE_EXCEEDED if timed_out else grpc.StatusCode.CANCELLED


def _remaining_s(context: Context) -> float | None:
    """Seconds until the caller's deadline; None: it has none, which the published type leaves out."""
    return context.time_remaining()
