"""Row blocks into requests and out of replies, without a Python loop over their values.

A packed `repeated float` has the same bytes as a little-endian float32 array, so a block goes out as one field of bytes
of the messages in protos/kilolayer/v1/blocks.proto: 2 us for 64 rows of 30 values, where `extend` takes 70 us. Replies
are read as the messages of policy.proto, which take every encoding that a server may choose.
"""

import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kilolayer.errors import BadReply, InvalidRequest
from kilolayer.v1 import blocks_pb2, policy_pb2

_MOST_64_BITS = 2**64 - 1
_MOST_32_BITS = 2**32 - 1
_HIGHEST_PRIORITY = 3
_ROUNDING = 1e-6  # of a float32 near 1, on whatever device computed it

Axes = tuple[int, ...]  # those that an answer shares with its states: () for one state, (rows,) for a block


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
) -> tuple[blocks_pb2.ActRequestBlocks, Axes]:
    """The request for `state: [S]` or `[rows, S]` and `goal: [G]` or `[rows, G]`, and the leading axes of its action.

    Raises:
        InvalidRequest: not numbers, no value, too many axes, as many goals as states are not given, a number out of its
            range, or `best_of` without a seed.
    """
    states, goals = _states_and_goals(state, goal)
    request = blocks_pb2.ActRequestBlocks(
        policy=policy,
        version=version,
        state=states.tobytes(),
        goal=goals.tobytes(),
        sequence=_whole("sequence", sequence, most=_MOST_64_BITS),
        rows=_rows(states),
        priority=_whole("priority", priority, most=_HIGHEST_PRIORITY),
        timeout_us=timeout_us,
    )
    if seed is not None:
        request.seed = _whole("seed", seed, most=_MOST_64_BITS)
        request.mode = policy_pb2.ACT_MODE_STOCHASTIC
    if best_of is not None:
        if seed is None:
            raise _invalid(
                f"best_of={best_of} chooses among draws, which need a seed; give seed=0, or a new one a tick"
            )
        request.candidates = _whole("best_of", best_of, least=1, most=_MOST_32_BITS)
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
) -> tuple[blocks_pb2.ScoreRequestBlocks, Axes]:
    """The request for `state` and `goal` as in `encode_act` and one `action: [A]` per state; its energy's leading axes.

    Raises:
        InvalidRequest: as `encode_act`, or not as many actions as states.
    """
    states, goals = _states_and_goals(state, goal)
    actions = _block("action", action)
    if actions.shape[:-1] != states.shape[:-1]:
        raise _invalid(
            f"action {list(actions.shape)} does not fit state {list(states.shape)}; give one action per state"
        )
    request = blocks_pb2.ScoreRequestBlocks(
        policy=policy,
        version=version,
        state=states.tobytes(),
        action=actions.tobytes(),
        goal=goals.tobytes(),
        sequence=_whole("sequence", sequence, most=_MOST_64_BITS),
        rows=_rows(states),
        priority=_whole("priority", priority, most=_HIGHEST_PRIORITY),
    )
    return request, states.shape[:-1]


def decode_action(reply: policy_pb2.ActResponse, sequence: int, *, leading_axes: Axes) -> NDArray[np.float32]:
    """The action [*leading_axes, action_dim] in `reply`, if it answers the request numbered `sequence`.

    Raises:
        BadReply: it answers another request, holds no action for some row, or an action outside [-1, 1].
    """
    _check_sequence(reply.sequence, sequence)
    rows = leading_axes[0] if leading_axes else 1
    action = np.fromiter(reply.action, np.float32, count=len(reply.action))  # a third of the time of np.array
    if not action.size or action.size % rows:
        raise _bad(f"{action.size} action values cannot be shared among {rows} rows")
    if not np.abs(action).max() <= 1 + _ROUNDING:  # written so that NaN fails too
        raise _bad(f"an action must lie in [-1, 1], but its values reach from {action.min()} to {action.max()}")
    return action.reshape(*leading_axes, -1)


def decode_energy(reply: policy_pb2.ScoreResponse, sequence: int, *, leading_axes: Axes) -> NDArray[np.float32]:
    """The energy [*leading_axes] in `reply`, if it answers the request numbered `sequence`.

    Raises:
        BadReply: it answers another request, or does not hold one finite energy per row.
    """
    _check_sequence(reply.sequence, sequence)
    rows = leading_axes[0] if leading_axes else 1
    energy = np.fromiter(reply.energy, np.float32, count=len(reply.energy))
    if energy.size != rows:
        raise _bad(f"{rows} rows have {rows} energies, not {energy.size}")
    if not np.isfinite(energy).all():
        raise _bad(f"an energy must be finite, but row {int(np.argmin(np.isfinite(energy)))} (the first is 0) is not")
    return energy.reshape(leading_axes)


def _states_and_goals(state: ArrayLike, goal: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    states, goals = _block("state", state), _block("goal", goal)
    if goals.ndim > states.ndim or (goals.ndim == 2 and len(goals) != len(states)):
        raise _invalid(
            f"goal {list(goals.shape)} does not fit state {list(states.shape)}; "
            "give one goal per state, or one goal of one axis for all of them"
        )
    return states, goals


def _rows(states: NDArray[np.float32]) -> int:
    """How many rows are meant, so that states of the wrong width cannot pass as fewer rows."""
    return len(states) if states.ndim == 2 else 1


def _block(name: str, values: ArrayLike) -> NDArray[np.float32]:
    """`values` as a contiguous little-endian float32 array of one or two axes, not empty."""
    try:
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, which the server names by row
            block = np.asarray(values).astype("<f4", order="C", casting="same_kind", copy=False)
    except (TypeError, ValueError) as error:
        raise _invalid(f"{name} must be an array of numbers: {error}") from error
    if block.ndim not in (1, 2) or not block.size:
        raise _invalid(
            f"{name} must be one row [{name}_dim] or a block [rows, {name}_dim], not of shape {list(block.shape)}"
        )
    return block


def _whole(name: str, value: int, *, most: int, least: int = 0) -> int:
    """`value` as an int, also if it is an integer of numpy."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        raise _invalid(f"{name} must be a whole number from {least} to {most}, not {value!r}")
    return number


def _check_sequence(answered: int, asked: int) -> None:
    if answered != asked:
        raise _bad(f"the reply answers request {answered}, not {asked}")


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest(f"Not sent: {problem}.", status="INVALID_ARGUMENT")


def _bad(problem: str) -> BadReply:
    return BadReply(f"Reply refused: {problem}.", status="DATA_LOSS")
