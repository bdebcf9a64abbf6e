"""Arrays to the bytes of requests, and replies to arrays, without a Python loop over their values.

A packed `repeated float` has the same bytes as a little-endian float32 array. A request is therefore written as a
message of protos/kilolayer/internal/blocks.proto, whose blocks are `bytes` fields: 2 us for 64 rows of 30 values,
compared with 70 us for `extend`. A reply is read as a message of policy.proto, because a server may use any legal
encoding.
"""

from __future__ import annotations

import collections
import operator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kilolayer._internal import blocks_pb2
from kilolayer.errors import BadReply, InvalidRequest
from kilolayer.v1 import policy_pb2

if TYPE_CHECKING:
    from typing_extensions import TypeGuard

_MAX_UINT64 = 2**64 - 1
_MAX_UINT32 = 2**32 - 1
_MAX_PRIORITY = 3
_MAX_ROBOT_ID_BYTES = 128  # in UTF-8
_ROUNDING = 1e-6  # tolerance around [-1, 1]: a few units in the last place of a float32

_SEQUENCES = (list, tuple, collections.deque)  # that numpy makes an array of
_SCALARS = frozenset({float, int, np.float32, np.float64})

Axes = tuple[int, ...]  # the axes that a response shares with its states: () for one state, (rows,) for a block


def encode_act(
    state: ArrayLike,
    goal: ArrayLike,
    *,
    policy: str,
    version: str,
    sequence: int,
    seed: int | None = None,
    best_of: int | None = None,
    priority: int = 0,
    timeout_us: int = 0,
    robot_id: str = "",
) -> tuple[blocks_pb2.ActRequestBlocks, Axes]:
    """Return the request for `state: [S]` or `[rows, S]` and `goal: [G]` or `[rows, G]`, and its action's leading axes.

    Raises:
        InvalidRequest: an array is not numeric, is masked, is empty, or has more than two axes; the number of goals is
            neither one nor that of the states; a number is out of range; or `best_of` has no seed.
    """
    states, goals = _states_and_goals(state, goal)
    request = blocks_pb2.ActRequestBlocks(
        policy=policy,
        version=version,
        state=states.tobytes(),
        goal=goals.tobytes(),
        sequence=_integer("sequence", sequence, most=_MAX_UINT64),
        rows=_rows(states),
        priority=_integer("priority", priority, most=_MAX_PRIORITY),
        timeout_us=timeout_us,
        robot_id=robot_id,
    )
    if seed is not None:
        request.seed = _integer("seed", seed, most=_MAX_UINT64)
        request.mode = policy_pb2.ACT_MODE_STOCHASTIC
    if best_of is not None:
        if seed is None:
            raise _invalid(
                f"best_of={best_of} samples actions and requires a seed; pass seed=0, or a new one each tick"
            )
        request.candidates = _integer("best_of", best_of, least=1, most=_MAX_UINT32)
        request.mode = policy_pb2.ACT_MODE_BEST_OF
    return request, states.shape[:-1]


def encode_score(
    state: ArrayLike,
    action: ArrayLike,
    *,
    goal: ArrayLike,
    policy: str,
    version: str,
    sequence: int,
    priority: int = 0,
    robot_id: str = "",
) -> tuple[blocks_pb2.ScoreRequestBlocks, Axes]:
    """Return the request for `state` and `goal` as in `encode_act` and one `action: [A]` or `[chunk, A]` per state.

    The second value is the leading axes of the energy.

    Raises:
        InvalidRequest: as `encode_act`, or the number of actions is not that of the states.
    """
    states, goals = _states_and_goals(state, goal)
    actions = _array("action", action)
    if not actions.size:
        raise _invalid(f"action must not be empty, got shape {list(actions.shape)}")
    leading_axes = states.shape[:-1]
    if actions.ndim - states.ndim not in (0, 1) or actions.shape[: len(leading_axes)] != leading_axes:
        raise _invalid(
            f"action {list(actions.shape)} does not fit state {list(states.shape)}; pass one action [action_dim], or "
            "one chunk of actions [action_chunk, action_dim], per state"
        )
    request = blocks_pb2.ScoreRequestBlocks(
        policy=policy,
        version=version,
        state=states.tobytes(),
        action=actions.tobytes(),
        goal=goals.tobytes(),
        sequence=_integer("sequence", sequence, most=_MAX_UINT64),
        rows=_rows(states),
        priority=_integer("priority", priority, most=_MAX_PRIORITY),
        robot_id=robot_id,
    )
    return request, leading_axes


def encode_report(
    episode: int, *, policy: str, version: str | int, robot_id: str, reached: bool, time_at_goal: int
) -> policy_pb2.ReportRequest:
    """Return the report of an episode.

    Raises:
        InvalidRequest: there is no robot id or no version, it is not text, or a number is out of range.
    """
    if not robot_id:
        raise _invalid("a report needs a robot_id; pass one to the client, which sends it with every act")
    if not str(version):
        raise _invalid(
            "a report needs the version that gave the actions; pass Action.version of the episode's last one"
        )
    return policy_pb2.ReportRequest(
        policy=policy,
        version=check_name("version", str(version)),
        robot_id=robot_id,
        episode=_integer("episode", episode, most=_MAX_UINT64),
        reached=bool(reached),
        time_at_goal=_integer("time_at_goal", time_at_goal, most=_MAX_UINT32),
    )


def decode_chunk(reply: policy_pb2.ActResponse, sequence: int, *, leading_axes: Axes) -> NDArray[np.float32]:
    """Return the actions [*leading_axes, action_chunk, action_dim] in the reply to the request numbered `sequence`.

    Raises:
        BadReply: `reply` belongs to another request, lacks an action of a row, or holds a value outside [-1, 1].
    """
    _check_sequence(reply.sequence, sequence)
    rows = leading_axes[0] if leading_axes else 1
    chunk = reply.action_chunk or 1
    action = np.fromiter(reply.action, np.float32, count=len(reply.action))  # 3 times as fast as np.array
    if not action.size or action.size % (rows * chunk):
        chunks = f" with {chunk} actions each" if chunk > 1 else ""
        raise _bad(f"{action.size} action values cannot be divided among {rows} rows{chunks}")
    if not np.abs(action).max() <= 1 + _ROUNDING:  # `not <=` instead of `>`: NaN must fail too
        raise _bad(f"an action must lie in [-1, 1], got values from {action.min()} to {action.max()}")
    return action.reshape(*leading_axes, chunk, -1)


def decode_energy(reply: policy_pb2.ScoreResponse, sequence: int, *, leading_axes: Axes) -> NDArray[np.float32]:
    """Return the energy [*leading_axes] in the reply to the request numbered `sequence`.

    Raises:
        BadReply: `reply` belongs to another request, or does not hold one finite energy per row.
    """
    _check_sequence(reply.sequence, sequence)
    rows = leading_axes[0] if leading_axes else 1
    energy = np.fromiter(reply.energy, np.float32, count=len(reply.energy))
    if energy.size != rows:
        raise _bad(f"{rows} rows need {rows} energies, got {energy.size}")
    finite = np.isfinite(energy)
    if not finite.all():
        raise _bad(f"an energy must be finite, got NaN or infinity in row {int(np.argmin(finite))}, counted from 0")
    return energy.reshape(leading_axes)


def _states_and_goals(state: ArrayLike, goal: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    states, goals = _block("state", state), _block("goal", goal)
    if goals.ndim > states.ndim or (goals.ndim == 2 and len(goals) != len(states)):
        raise _invalid(
            f"goal {list(goals.shape)} does not fit state {list(states.shape)}; "
            "pass one goal per state, or a single goal [goal_dim] for all of them"
        )
    return states, goals


def _rows(states: NDArray[np.float32]) -> int:
    """Return the number of rows. It is sent too, so that states of the wrong width cannot pass as fewer rows."""
    return len(states) if states.ndim == 2 else 1


def check_name(field: str, name: object) -> str:
    """Return `name`, the value of a text field. InvalidRequest if it is not a string, or cannot be sent in UTF-8."""
    if not _is_text(name):
        raise _invalid(f"{field} must be a string without lone surrogates, got {name!r:.200}")
    return name


def _is_text(value: object) -> TypeGuard[str]:
    """Return whether `value` is a string that UTF-8 can encode: Python's may have lone surrogates, which it cannot."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    else:
        return True


def check_robot_id(robot_id: object) -> str:
    """Return `robot_id`. ValueError if it is not a string in UTF-8, or has more than 128 bytes."""
    if not _is_text(robot_id) or len(robot_id.encode()) > _MAX_ROBOT_ID_BYTES:
        raise ValueError(
            f"robot_id must be a string of at most {_MAX_ROBOT_ID_BYTES} bytes in UTF-8, got {robot_id!r:.200}"
        )
    return robot_id


def is_masked(values: object) -> bool:
    """Return whether `values` is a masked array, or a sequence that has one: `np.asarray` would drop the mask."""
    if isinstance(values, np.ma.MaskedArray):
        return True
    if not isinstance(values, _SEQUENCES):
        return False
    kinds = set(map(type, values))  # a look at the types is several times as fast as one at each value
    if kinds <= _SCALARS or not any(issubclass(kind, (*_SEQUENCES, np.ma.MaskedArray)) for kind in kinds):
        return False
    return any(map(is_masked, values))


def _array(name: str, values: ArrayLike) -> NDArray[np.float32]:
    """Return `values` as a little-endian float32 array."""
    if is_masked(values):
        raise _invalid(f"{name} must not be a masked array, because a mask cannot be sent; pass {name}.filled(value)")
    try:
        with np.errstate(over="ignore"):  # too large values become infinite; the server reports their row
            return np.asarray(values).astype("<f4", casting="same_kind", copy=False)
    except (TypeError, ValueError) as error:
        raise _invalid(f"{name} must be an array of numbers: {error}") from error


def _block(name: str, values: ArrayLike) -> NDArray[np.float32]:
    """Return `values` as a little-endian float32 array of one or two axes, not empty."""
    block = _array(name, values)
    if block.ndim not in (1, 2) or not block.size:
        raise _invalid(
            f"{name} must be one row [{name}_dim] or a block [rows, {name}_dim], got shape {list(block.shape)}"
        )
    return block


def _integer(name: str, value: int, *, most: int, least: int = 0) -> int:
    """Return `value`, an int or a numpy integer, as an int in [least, most]."""
    try:
        number = least - 1 if is_masked(value) else operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        raise _invalid(f"{name} must be an integer from {least} to {most}, got {value!r}")
    return number


def _check_sequence(replied: int, sent: int) -> None:
    if replied != sent:
        raise _bad(f"it answers request {replied}, not {sent}")


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest(f"Not sent: {problem}.", status="INVALID_ARGUMENT")


def _bad(problem: str) -> BadReply:
    return BadReply(f"Reply rejected: {problem}.", status="DATA_LOSS")
