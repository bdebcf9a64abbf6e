"""The client's codec against protobuf's own reading and writing of the public messages."""

from __future__ import annotations  # for Python 3.9

import math
import struct
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kilolayer import BadReply, InvalidRequest
from kilolayer._codec import Axes, decode_chunk, decode_energy, encode_act, encode_score
from kilolayer.v1 import policy_pb2

UINT64 = st.integers(0, 2**64 - 1)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
UNIT = st.floats(-1, 1, width=32)
MODES = policy_pb2.ACT_MODE_UNSPECIFIED, policy_pb2.ACT_MODE_STOCHASTIC, policy_pb2.ACT_MODE_BEST_OF
LAYOUTS = {
    "float32": lambda array: array,
    "float64": lambda array: array.astype(np.float64),
    "big-endian": lambda array: array.astype(">f4"),
    "column by column": np.asfortranarray,
    "reversed": lambda array: array[::-1].copy()[::-1],
    "list": lambda array: array.tolist(),
}


@st.composite
def blocks(
    draw: st.DrawFn, leading_axes: tuple[int, ...], values: st.SearchStrategy[float] = FLOATS
) -> NDArray[np.float32]:
    shape = (*leading_axes, draw(st.integers(1, 5)))
    count = math.prod(shape)
    return np.array(draw(st.lists(values, min_size=count, max_size=count)), np.float32).reshape(shape)


@st.composite
def inputs(draw: st.DrawFn) -> tuple[Axes, NDArray[np.float32], NDArray[np.float32]]:
    """Leading axes, states and goals that fit each other; one goal may serve all states."""
    leading_axes = draw(st.sampled_from([(), (1,), (2,), (7,)]))
    goal_axes = draw(st.sampled_from([leading_axes, ()]))
    return leading_axes, draw(blocks(leading_axes)), draw(blocks(goal_axes))


def in_any_layout(data: st.DataObject, array: NDArray[np.float32]) -> Any:
    return LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))](array)


@given(
    given_inputs=inputs(),
    data=st.data(),
    policy=NAMES,
    version=NAMES,
    sequence=UINT64,
    priority=st.integers(0, 3),
    timeout_us=UINT64,
    robot_id=NAMES,
)
def test_protobuf_reads_every_act_request_as_it_was_meant(
    given_inputs: tuple[Axes, NDArray[np.float32], NDArray[np.float32]],
    data: st.DataObject,
    *,
    policy: str,
    version: str,
    sequence: int,
    priority: int,
    timeout_us: int,
    robot_id: str,
) -> None:
    leading_axes, state, goal = given_inputs
    seed = data.draw(st.none() | UINT64)
    best_of = None if seed is None else data.draw(st.none() | st.integers(1, 2**32 - 1))
    request, axes = encode_act(
        in_any_layout(data, state),
        in_any_layout(data, goal),
        policy=policy,
        version=version,
        sequence=sequence,
        seed=seed,
        best_of=best_of,
        priority=priority,
        timeout_us=timeout_us,
        robot_id=robot_id,
    )
    assert axes == leading_axes
    assert policy_pb2.ActRequest.FromString(request.SerializeToString()) == policy_pb2.ActRequest(
        policy=policy,
        version=version,
        state=state.ravel().tolist(),
        goal=goal.ravel().tolist(),
        sequence=sequence,
        rows=leading_axes[0] if leading_axes else 1,
        mode=MODES[(seed is not None) + (best_of is not None)],
        seed=seed or 0,
        candidates=best_of or 0,
        priority=priority,
        timeout_us=timeout_us,
        robot_id=robot_id,
    )


@given(given_inputs=inputs(), data=st.data(), policy=NAMES, version=NAMES, sequence=UINT64, priority=st.integers(0, 3))
def test_protobuf_reads_every_score_request_as_it_was_meant(
    given_inputs: tuple[Axes, NDArray[np.float32], NDArray[np.float32]],
    data: st.DataObject,
    *,
    policy: str,
    version: str,
    sequence: int,
    priority: int,
) -> None:
    leading_axes, state, goal = given_inputs
    chunk_axes = data.draw(st.sampled_from([(), (1,), (3,)]))  # one action per state, or a chunk
    action = data.draw(blocks((*leading_axes, *chunk_axes), UNIT))
    request, axes = encode_score(
        in_any_layout(data, state),
        in_any_layout(data, action),
        goal=in_any_layout(data, goal),
        policy=policy,
        version=version,
        sequence=sequence,
        priority=priority,
    )
    assert axes == leading_axes
    assert policy_pb2.ScoreRequest.FromString(request.SerializeToString()) == policy_pb2.ScoreRequest(
        policy=policy,
        version=version,
        state=state.ravel().tolist(),
        action=action.ravel().tolist(),
        goal=goal.ravel().tolist(),
        sequence=sequence,
        rows=leading_axes[0] if leading_axes else 1,
        priority=priority,
    )


def test_a_request_without_priority_and_limit_has_none() -> None:
    act, _ = encode_act([0], [0], policy="", version="", sequence=1)
    score, _ = encode_score([0], [0], goal=[0], policy="", version="", sequence=1)
    assert (act.priority, act.timeout_us, score.priority) == (0, 0, 0)


@pytest.mark.parametrize(("state", "goal"), [([1e39, 0], [0]), ([0, 0], [-1e39])])
def test_a_value_too_large_for_float32_is_sent_as_infinity_for_the_server_to_report(state: Any, goal: Any) -> None:
    request, _ = encode_act(state, goal, policy="", version="", sequence=1)
    sent = policy_pb2.ActRequest.FromString(request.SerializeToString())
    assert [*sent.state, *sent.goal] == [math.copysign(math.inf, each) if each else 0 for each in (*state, *goal)]


@given(state=inputs(), goal=inputs())
def test_goals_that_do_not_fit_their_states_are_refused(state: Any, goal: Any) -> None:
    (state_axes, states, _), (goal_axes, _, goals) = state, goal
    goal_axes = goals.shape[:-1]
    if goal_axes in ((), state_axes):
        encode_act(states, goals, policy="", version="", sequence=1)
    else:
        with pytest.raises(InvalidRequest, match="does not fit"):
            encode_act(states, goals, policy="", version="", sequence=1)


def encodings(field: int, values: list[float]) -> list[bytes]:
    """Every way in which a sender may write the repeated float `field`."""

    def packed(part: list[float]) -> bytes:
        return bytes([field << 3 | 2, 4 * len(part)]) + struct.pack(f"<{len(part)}f", *part)

    middle = len(values) // 2
    unpacked = b"".join(bytes([field << 3 | 5]) + struct.pack("<f", value) for value in values)
    return [packed(values), packed(values[:middle]) + packed(values[middle:]), unpacked]


@given(
    leading_axes=st.sampled_from([(), (1,), (3,)]),
    action_chunk=st.sampled_from([0, 1, 2]),
    sequence=UINT64,
    data=st.data(),
)
def test_actions_are_read_from_every_legal_encoding(
    leading_axes: Axes, action_chunk: int, sequence: int, data: st.DataObject
) -> None:
    actions = data.draw(blocks((*leading_axes, action_chunk or 1), UNIT))  # a reply without the field has chunks of 1
    rest = policy_pb2.ActResponse(sequence=sequence, policy="p", action_chunk=action_chunk).SerializeToString()
    for raw in encodings(1, actions.ravel().tolist()):
        reply = policy_pb2.ActResponse.FromString(raw + rest)
        decoded = decode_chunk(reply, sequence, leading_axes=leading_axes)
        assert decoded.dtype == np.float32
        assert decoded.tolist() == actions.tolist()


@given(leading_axes=st.sampled_from([(), (1,), (3,)]), sequence=UINT64, data=st.data())
def test_energies_are_read_from_every_legal_encoding(leading_axes: Axes, sequence: int, data: st.DataObject) -> None:
    rows = leading_axes[0] if leading_axes else 1
    energy = data.draw(blocks((), FLOATS).filter(lambda values: len(values) == rows)).reshape(leading_axes)
    rest = policy_pb2.ScoreResponse(sequence=sequence, policy="p").SerializeToString()
    for raw in encodings(1, energy.ravel().tolist()):
        reply = policy_pb2.ScoreResponse.FromString(raw + rest)
        decoded = decode_energy(reply, sequence, leading_axes=leading_axes)
        assert decoded.dtype == np.float32
        assert decoded.shape == leading_axes
        assert decoded.tolist() == energy.tolist()


@pytest.mark.parametrize("value", [1 + 9e-7, -1 - 9e-7])
def test_an_action_may_exceed_its_range_by_rounding(value: float) -> None:
    assert decode_chunk(policy_pb2.ActResponse(action=[value]), 0, leading_axes=()).tolist() == [[np.float32(value)]]


@pytest.mark.parametrize("value", [1 + 3e-6, -1 - 3e-6, math.nan, math.inf])
def test_an_action_may_not_exceed_its_range_by_more(value: float) -> None:
    with pytest.raises(BadReply, match=r"an action must lie in \[-1, 1\], got values from"):
        decode_chunk(policy_pb2.ActResponse(action=[0.5, value]), 0, leading_axes=())


@given(raw=st.binary(max_size=60), rows=st.integers(1, 3))
def test_any_bytes_are_a_reply_within_the_contract_or_refused(raw: bytes, rows: int) -> None:
    try:
        reply = policy_pb2.ActResponse.FromString(raw)
        action = decode_chunk(reply, reply.sequence, leading_axes=(rows,))
    except (BadReply, DecodeError):
        return
    chunk = max(1, reply.action_chunk)
    assert action.shape == (rows, chunk, len(reply.action) // rows // chunk)
    assert (np.abs(action) <= 1 + 2e-6).all()
