"""Check the row blocks of requests and turn them into rows for the engine, without a loop over values or rows."""

import math
from typing import NamedTuple

import numpy as np

from kilolayer._internal import blocks_pb2
from kilolayer.v1 import policy_pb2
from policy.spec import PolicySpec
from serving.batching.queue import PRIORITIES
from serving.engine.engine import Kind, noise_columns
from serving.errors import InvalidRequestError, NoCriticError, echo

_FLOAT = np.dtype("<f4")
_MAX_ROBOT_ID_BYTES = 128  # in UTF-8: the id becomes part of logs and stored reports
_MAX_VERSION_DIGITS = 18
_SMALL = 4096  # values; for more, numpy's product may use several threads
_BEST_OF = policy_pb2.ACT_MODE_BEST_OF
_MODES = tuple(policy_pb2.ActMode.values())


class ComputeRequest(NamedTuple):
    """What the engine has to compute for a request."""

    kind: Kind
    rows: np.ndarray  # [rows * candidates, columns of the kind] float32
    candidates: int = 1  # actions to sample for each row of the request; the reply has the best one


def decode_act(request: blocks_pb2.ActRequestBlocks, spec: PolicySpec, *, max_rows: int) -> ComputeRequest:
    """Return what the engine has to compute for an Act.

    Args:
        spec: of the policy.
        max_rows: maximum rows of one request, candidates counted.

    Raises:
        InvalidRequestError: sizes do not fit the policy, there are too many rows, a value is NaN or infinite, a number
            is out of range, or the robot's id is too long.
        NoCriticError: the mode is the best of several candidates, and the policy has no critic.
    """
    _check_priority(request.priority)
    if request.robot_id:
        check_robot_id(request.robot_id)
    if request.mode not in _MODES:
        raise InvalidRequestError(f"mode must be from 0 to {max(_MODES)}, got {request.mode}")
    if request.mode == _BEST_OF:
        _require_critic(spec, "choose the best of several actions; use another mode, or another policy")
    inputs = _inputs(request, spec, max_rows=max_rows)
    if request.mode <= policy_pb2.ACT_MODE_DETERMINISTIC:
        return ComputeRequest(Kind.ACT, inputs)
    rows, candidates = len(inputs), 1
    if request.mode == _BEST_OF:
        candidates = request.candidates
        if not 1 <= candidates <= max_rows // rows:
            raise InvalidRequestError(
                f"candidates must be from 1 to {max_rows // rows} for {rows} rows, got {candidates}: a request may have"
                f" at most {max_rows} rows, and each candidate counts as one"
            )
    noise = noise_columns(request.seed, rows=rows, candidates=candidates)
    with_noise = np.concatenate([np.repeat(inputs, candidates, axis=0), noise], axis=1)
    return ComputeRequest(Kind.BEST_OF if request.mode == _BEST_OF else Kind.SAMPLE, with_noise, candidates)


def decode_score(request: blocks_pb2.ScoreRequestBlocks, spec: PolicySpec, *, max_rows: int) -> ComputeRequest:
    """Return what the engine has to compute for a Score. Arguments and errors as for `decode_act`."""
    _check_priority(request.priority)
    if request.robot_id:
        check_robot_id(request.robot_id)
    _require_critic(spec, "score actions; choose another policy")
    state, rows = _state(request.state, request.rows, spec=spec, max_rows=max_rows)
    action = _matching("action", request.action, spec.chunk_dim, rows=rows, spec=spec, broadcasts=False)
    goal = _matching("goal", request.goal, spec.goal_dim, rows=rows, spec=spec, broadcasts=True)
    if np.abs(action).max() > 1:
        raise InvalidRequestError(f"action must be within [-1, 1], got a value of magnitude {np.abs(action).max():.9g}")
    return ComputeRequest(Kind.SCORE, join(state=state, action=action, goal=goal))


def check_report(request: policy_pb2.ReportRequest) -> None:
    """Refuse a report that cannot be counted, whatever the server has answered.

    Raises:
        InvalidRequestError: it names no robot, the robot's id is too long, or the version is not a number.
    """
    if not request.robot_id:
        raise InvalidRequestError("robot_id must not be empty: reports count once for each robot and episode")
    check_robot_id(request.robot_id)
    version = request.version
    if not (version.isascii() and version.isdecimal() and len(version) <= _MAX_VERSION_DIGITS):
        raise InvalidRequestError(
            f"version must be that of the replies, a training step such as 2000, got {echo(version)}"
        )


def check_robot_id(robot_id: str) -> None:
    """Refuse the id of a robot that is too long.

    Raises:
        InvalidRequestError: it has more than 128 bytes in UTF-8.
    """
    size = len(robot_id.encode())
    if size > _MAX_ROBOT_ID_BYTES:
        raise InvalidRequestError(f"robot_id must have at most {_MAX_ROBOT_ID_BYTES} bytes in UTF-8, got {size}")


def join(**blocks: np.ndarray) -> np.ndarray:
    """Join blocks [rows, columns] side by side: [rows, all columns] float32. A block of one row is used for every row.

    Raises:
        InvalidRequestError: a value is NaN or infinite. The message names the block and the row.
    """
    arrays = tuple(blocks.values())
    rows = max(map(len, arrays))
    whole = [array if len(array) == rows else np.broadcast_to(array, (rows, array.shape[1])) for array in arrays]
    joined = np.concatenate(whole, axis=1)
    if not _finite(joined):
        _refuse_not_finite(blocks)
    return joined


def from_bytes(name: str, raw: bytes) -> np.ndarray:
    """Return the values [values] float32 of a block; `name` is for the error.

    Raises:
        InvalidRequestError: the number of bytes is not a multiple of 4.
    """
    if len(raw) % _FLOAT.itemsize:
        raise InvalidRequestError(f"{name} must hold 4 bytes for each value, got {len(raw)} bytes")
    return np.frombuffer(raw, _FLOAT)


def _inputs(request: blocks_pb2.ActRequestBlocks, spec: PolicySpec, *, max_rows: int) -> np.ndarray:
    """Return states and goals side by side, [rows, state_dim + goal_dim]."""
    sizes = len(request.state), len(request.goal)
    if sizes == (spec.state_dim * _FLOAT.itemsize, spec.goal_dim * _FLOAT.itemsize) and request.rows <= 1:
        # The common case, one row of one robot, is fast: the bytes of its blocks are joined.
        row = np.frombuffer(request.state + request.goal, _FLOAT).reshape(1, -1)
        if _finite(row):
            return row
    state, rows = _state(request.state, request.rows, spec=spec, max_rows=max_rows)
    goal = _matching("goal", request.goal, spec.goal_dim, rows=rows, spec=spec, broadcasts=True)
    return join(state=state, goal=goal)


def _state(raw: bytes, rows: int, *, spec: PolicySpec, max_rows: int) -> tuple[np.ndarray, int]:
    """Return the states [rows, state_dim] and their number. `rows` is the number that the request states, or 0."""
    values = from_bytes("state", raw)
    count, rest = divmod(len(values), spec.state_dim)
    if rest or not count:
        names = ", ".join((*spec.state_names[:2], "...")[: spec.state_dim])
        raise InvalidRequestError(
            f"each row of state needs {spec.state_dim} values of {spec.name} ({names}), got {len(values)} values in all"
        )
    if rows not in (0, count):
        raise InvalidRequestError(
            f"state must hold {rows * spec.state_dim} values for {rows} rows of {spec.name}, got {len(values)}"
        )
    if count > max_rows:
        raise InvalidRequestError(f"a request may have at most {max_rows} rows, got {count}")
    return values.reshape(count, spec.state_dim), count


def _matching(name: str, raw: bytes, dim: int, *, rows: int, spec: PolicySpec, broadcasts: bool) -> np.ndarray:
    """Return a block [rows, dim]; if `broadcasts`, a block [1, dim] for all rows is allowed too."""
    values = from_bytes(name, raw)
    if len(values) == rows * dim or (broadcasts and len(values) == dim):
        return values.reshape(-1, dim)
    every = f" values, or {rows * dim} for {rows} rows," if rows > 1 else " values"
    wanted = f"{dim}{every}" if broadcasts or rows == 1 else f"{rows * dim} values for {rows} rows"
    chunks = f", {spec.action_chunk} actions of {spec.action_dim} values for each row" if name == "action" else ""
    raise InvalidRequestError(
        f"{name} must hold {wanted} of {spec.name}{chunks if spec.action_chunk > 1 else ''}, got {len(values)}"
    )


def _check_priority(priority: int) -> None:
    if priority >= PRIORITIES:
        raise InvalidRequestError(f"priority must be from 0 to {PRIORITIES - 1}, got {priority}")


def _require_critic(spec: PolicySpec, ability: str) -> None:
    if not spec.has_critic:
        raise NoCriticError(f"{spec.name} has no critic, so it cannot {ability}")


def _finite(values: np.ndarray) -> bool:
    # For few values, the sum of squares is faster. It is finite only if all values are, but large values overflow it.
    return (values.size <= _SMALL and math.isfinite(np.vdot(values, values))) or bool(np.isfinite(values).all())


def _refuse_not_finite(blocks: dict[str, np.ndarray]) -> None:
    for name, block in blocks.items():
        is_finite = np.isfinite(block).all(axis=1)
        if not is_finite.all():
            row = int(np.argmin(is_finite))
            raise InvalidRequestError(f"{name} of row {row} (the first is 0) has NaN or infinity; send finite values")
