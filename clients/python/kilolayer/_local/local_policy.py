"""LocalPolicy: the calls of a client, answered on the robot itself from an exported policy, without a server.

Any number of threads may share one. Each computes its own call, and no call waits for another.
"""

from __future__ import annotations

import itertools
import time
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
from numpy.typing import ArrayLike

from kilolayer._arguments import check_act, check_score
from kilolayer._local.backend import open_backend
from kilolayer._local.export import read, require_extra
from kilolayer._local.local_model import Answer, LocalModel
from kilolayer._local.request_checks import RefusedError
from kilolayer._meaning import check_timeout, meaning, sentence
from kilolayer._responses import Action, PolicyDescription, Score
from kilolayer.errors import ClientClosed, KilolayerError

if TYPE_CHECKING:
    from typing_extensions import Self

_TOO_LATE = "the computation took longer"


class LocalPolicy:
    """A policy computed in this process from the folder that `kilolayer-policy export` wrote.

    `act`, `score` and `describe` give what a server of the same policy gives, with the same checks and exceptions. The
    folder is verified first: the sizes and hashes of its files, and the actions for the stored probes, which must be
    equal within 1e-4. It needs the extra `local` (`pip install 'kilolayer[local]'`).

    Of a response, `compute_us` is the time of the computation, on this machine's clock; `queue_us` is 0, because no
    call waits for another; `batch_rows` is the number of rows of the call alone, candidates included.

    Args:
        folder: of the exported policy. Files that its manifest does not name are ignored.
        backend: `"onnx"` computes actor.onnx with ONNX Runtime, `"numpy"` computes model.safetensors with numpy. None
            means `"onnx"` if the folder has actor.onnx and ONNX Runtime is installed, `"numpy"` otherwise.
        threads: number of threads that ONNX Runtime uses for a call, the calling one included; None means 1.
        timeout_s: timeout in seconds of a call that has none of its own.

    Raises:
        InvalidExport: the folder has changed, is not an exported policy, or its files give other actions than the
            published policy. The message names what is wrong. It is a ValueError.
        ImportError: the extra `local` is not installed.
        ValueError: an argument is wrong.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        *,
        backend: str | None = None,
        threads: int | None = None,
        timeout_s: float = 1.0,
    ) -> None:
        self._timeout_s = check_timeout(timeout_s)
        require_extra()
        export = read(Path(folder))
        self._folder = export.folder
        opened = open_backend(export, backend=backend, threads=threads)
        self._model: LocalModel | None = LocalModel(export, opened)
        self._description = export.description
        self._sequences = itertools.count(1)
        self.backend: str = opened.name
        """What computes the actor: `"onnx"` or `"numpy"`."""

    def act(
        self,
        state: ArrayLike,
        goal: ArrayLike,
        *,
        seed: int | None = None,
        best_of: int | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        sequence: int | None = None,
    ) -> Action:
        """Return the action in `state` towards `goal`. The arguments are those of `PolicyClient.act`.

        A seed gives the same noise as in a server. `priority` is checked and has no effect. A computation is not
        interrupted: if it ends after `timeout_s`, its result is dropped.

        Raises:
            InvalidRequest: the arrays do not fit each other or the policy, a number is out of range, `best_of` has no
                seed, or the values are so extreme that there is no finite action.
            NotSupported: `best_of` with a policy that has no critic, or was exported without it.
            ServerFailure: the policy gives NaN or infinity, or cannot be computed.
            DeadlineExceeded: the computation took longer than `timeout_s`.
            ClientClosed: the policy was closed.
            ValueError: the timeout is not a positive number.
        """
        began_s = time.perf_counter()
        number = next(self._sequences) if sequence is None else sequence
        arguments = check_act(state, goal, sequence=number, seed=seed, best_of=best_of, priority=priority)
        call = self._begin("Act", timeout_s, began_s=began_s, has_candidates=best_of is not None)
        try:
            answer = call.model.act(arguments)
        except RefusedError as refusal:
            raise self._failure(call, refusal) from refusal.__cause__
        chunk = answer.results.reshape(*arguments.leading_axes, self._description.action_chunk, -1)
        fields = self._fields(call, answer, sequence=arguments.sequence)
        return Action(chunk=chunk, out_of_range=answer.out_of_range, **fields)

    def score(
        self,
        state: ArrayLike,
        action: ArrayLike,
        *,
        goal: ArrayLike,
        priority: int = 0,
        timeout_s: float | None = None,
        sequence: int | None = None,
    ) -> Score:
        """Return the critic's energy: how near `goal` is after `action` in `state`.

        The arguments are those of `PolicyClient.score`. Raises as `act`.
        """
        began_s = time.perf_counter()
        number = next(self._sequences) if sequence is None else sequence
        arguments = check_score(state, action, goal=goal, sequence=number, priority=priority)
        call = self._begin("Score", timeout_s, began_s=began_s, has_candidates=False)
        try:
            answer = call.model.score(arguments)
        except RefusedError as refusal:
            raise self._failure(call, refusal) from refusal.__cause__
        energy = answer.results.reshape(arguments.leading_axes)
        return Score(energy=energy, **self._fields(call, answer, sequence=arguments.sequence))

    def describe(self, *, timeout_s: float | None = None) -> PolicyDescription:
        """Return the sizes, names and limits of the policy. `critic` is "none" if the critic was not exported."""
        self._begin("Describe", timeout_s, began_s=time.perf_counter(), has_candidates=False)
        return self._description

    def wait_until_ready(self, timeout_s: float) -> PolicyDescription:
        """Return the description of the policy. It is ready immediately, so programs for a server work unchanged."""
        return self.describe(timeout_s=timeout_s)

    def close(self) -> None:
        """Release the memory of the policy. Later calls raise ClientClosed; calls in other threads end as usual."""
        self._model = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, method: str, timeout_s: float | None, *, began_s: float, has_candidates: bool) -> _Call:
        limit_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        model = self._model
        if model is None:
            raise ClientClosed(
                f"{method} in {self._folder} failed: the policy was closed. Make a new LocalPolicy.",
                status=grpc.StatusCode.CANCELLED.name,
            )
        return _Call(method, model, began_s, limit_s, has_candidates)

    def _fields(self, call: _Call, answer: Answer, *, sequence: int) -> dict[str, Any]:
        """Return the fields that `Action` and `Score` share. Raises DeadlineExceeded if the call took too long."""
        took_s = time.perf_counter() - call.began_s
        if took_s > call.limit_s:
            raise self._failure(call, RefusedError("DEADLINE_EXCEEDED", "", _TOO_LATE))
        return {
            "policy": self._description.name,
            "version": self._description.version,
            "sequence": sequence,
            "queue_us": 0,
            "compute_us": round(answer.compute_s * 1e6),
            "batch_rows": answer.batch_rows,
            "round_trip_s": took_s,
        }

    def _failure(self, call: _Call, refusal: RefusedError) -> KilolayerError:
        code = grpc.StatusCode[refusal.status]
        kind, advice = meaning(call.method, code, reason=refusal.reason, has_candidates=call.has_candidates)
        where = f"{call.method} in {self._folder}"
        return kind(
            sentence(where, code, timeout_s=call.limit_s, happened=refusal.happened, advice=advice),
            status=refusal.status,
            reason=refusal.reason,
        )


class _Call(NamedTuple):
    """One call of a method."""

    method: str  # as in the service
    model: LocalModel
    began_s: float
    limit_s: float
    has_candidates: bool
