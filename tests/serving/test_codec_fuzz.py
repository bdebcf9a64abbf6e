"""Any bytes and any tensors: they become the rows that protobuf and numpy read in them, or one named error."""

import contextlib
import functools

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kilolayer._internal.blocks_pb2 import ActRequestBlocks, ScoreRequestBlocks
from kilolayer.v1 import policy_pb2
from serving.api import codec
from serving.api.handlers import parse_blocks
from serving.api.open_inference import open_inference_pb2 as pb
from serving.api.open_inference.tensors import decode_rows, decode_scheduling
from serving.batching.queue import PRIORITIES
from serving.engine.engine import Kind
from serving.errors import InvalidRequestError
from tests.open_inference import tensor
from tests.samples import policy_spec

SPEC = policy_spec()  # 4 values of state, 2 of goal, 2 of action
MAX_ROWS = 5
parse_act = functools.partial(parse_blocks, blocks_type=ActRequestBlocks, public_type=policy_pb2.ActRequest)
parse_score = functools.partial(parse_blocks, blocks_type=ScoreRequestBlocks, public_type=policy_pb2.ScoreRequest)
FLOATS = st.floats(width=32)  # NaN and infinity too
VALUES = st.lists(FLOATS | st.integers(-3, 3).map(float), max_size=26)


def rows_of(count: st.SearchStrategy[int], columns: int, *, limit: float = 1e6) -> st.SearchStrategy[np.ndarray]:
    finite = st.floats(-limit, limit, width=32)
    return count.flatmap(lambda rows: arrays(np.float32, (rows, columns), elements=finite))


@st.composite
def act_requests(draw: st.DrawFn) -> policy_pb2.ActRequest:
    """Requests of which about half fit the policy."""
    rows = draw(st.integers(1, MAX_ROWS + 1))
    goals = draw(st.sampled_from([1, rows]))
    sized = [st.lists(st.floats(-9, 9, width=32), min_size=size, max_size=size) for size in (4 * rows, 2 * goals)]
    state, goal = (draw(fitting | VALUES if draw(st.booleans()) else fitting) for fitting in sized)
    return policy_pb2.ActRequest(
        policy=draw(st.text(max_size=3)),
        state=state,
        goal=goal,
        rows=draw(st.sampled_from([0, rows, 7])),
        mode=draw(st.integers(0, 4)),  # pyright: ignore[reportArgumentType]
        candidates=draw(st.integers(0, MAX_ROWS + 1)),
        seed=draw(st.integers(0, 2**64 - 1)),
        priority=draw(st.sampled_from([0, PRIORITIES - 1, PRIORITIES])),
        sequence=draw(st.integers(0, 2**64 - 1)),
    )


def decoded(raw: bytes) -> codec.ComputeRequest | None:
    """The work that the bytes ask for, or None if they are refused."""
    try:
        return codec.decode_act(parse_act(raw), SPEC, max_rows=MAX_ROWS)
    except InvalidRequestError:
        return None


@given(state=rows_of(st.integers(1, MAX_ROWS), SPEC.state_dim), data=st.data())
def test_every_request_that_fits_is_read_as_it_was_written(state: np.ndarray, data: st.DataObject) -> None:
    goal = data.draw(rows_of(st.sampled_from([1, len(state)]), SPEC.goal_dim))
    request = policy_pb2.ActRequest(state=state.ravel(), goal=goal.ravel())
    work = decoded(request.SerializeToString())
    assert work is not None
    assert work.kind is Kind.ACT
    expected = np.concatenate([state, np.broadcast_to(goal, (len(state), SPEC.goal_dim))], axis=1)
    np.testing.assert_array_equal(work.rows, expected)


@given(state=rows_of(st.integers(1, MAX_ROWS), SPEC.state_dim), goal=rows_of(st.just(1), SPEC.goal_dim), data=st.data())
def test_every_score_that_fits_is_read_as_it_was_written(
    state: np.ndarray, goal: np.ndarray, data: st.DataObject
) -> None:
    action = data.draw(rows_of(st.just(len(state)), SPEC.action_dim, limit=1))
    request = policy_pb2.ScoreRequest(state=state.ravel(), action=action.ravel(), goal=goal.ravel())
    work = codec.decode_score(parse_score(request.SerializeToString()), SPEC, max_rows=MAX_ROWS)
    expected = np.concatenate([state, action, np.broadcast_to(goal, (len(state), SPEC.goal_dim))], axis=1)
    np.testing.assert_array_equal(work.rows, expected)


@given(priority=st.integers(0, 2 * PRIORITIES))
def test_a_score_has_a_priority_of_the_queue(priority: int) -> None:
    request = policy_pb2.ScoreRequest(state=[1] * 4, action=[0, 0], goal=[1, 2], priority=priority)
    parsed = parse_score(request.SerializeToString())
    if priority < PRIORITIES:
        assert len(codec.decode_score(parsed, SPEC, max_rows=MAX_ROWS).rows) == 1
    else:
        with pytest.raises(InvalidRequestError, match=f"priority must be from 0 to {PRIORITIES - 1}, got {priority}"):
            codec.decode_score(parsed, SPEC, max_rows=MAX_ROWS)


@settings(max_examples=400)
@given(request=act_requests())
@example(request=policy_pb2.ActRequest(state=[1, 2, 3, float("nan")], goal=[1, 2]))
@example(request=policy_pb2.ActRequest(state=[3e38, 3e38, 3e38, 3e38], goal=[1, 2]))  # whose square sum is infinite
def test_what_is_read_is_what_the_public_message_says(request: policy_pb2.ActRequest) -> None:
    work = decoded(request.SerializeToString())
    state, goal = (np.array(list(values), np.float32) for values in (request.state, request.goal))
    rows = len(state) // SPEC.state_dim
    fits = (
        0 < len(state) == rows * SPEC.state_dim <= MAX_ROWS * SPEC.state_dim
        and len(goal) in (SPEC.goal_dim, rows * SPEC.goal_dim)
        and request.rows in (0, rows)
        and np.isfinite(state).all()
        and np.isfinite(goal).all()
        and request.priority < PRIORITIES
        and request.mode < 4
        and (request.mode != policy_pb2.ACT_MODE_BEST_OF or 1 <= request.candidates * rows <= MAX_ROWS)
    )
    assert (work is not None) == fits
    if work is not None:
        kinds = {policy_pb2.ACT_MODE_STOCHASTIC: Kind.SAMPLE, policy_pb2.ACT_MODE_BEST_OF: Kind.BEST_OF}
        assert work.kind is kinds.get(request.mode, Kind.ACT)
        assert work.candidates == (request.candidates if work.kind is Kind.BEST_OF else 1)
        assert len(work.rows) == rows * work.candidates
        inputs = work.rows[:: work.candidates, : SPEC.state_dim + SPEC.goal_dim]
        np.testing.assert_array_equal(inputs[:, : SPEC.state_dim].ravel(), state)
        np.testing.assert_array_equal(inputs[:, SPEC.state_dim :], np.broadcast_to(goal.reshape(-1, 2), (rows, 2)))


@given(raw=st.binary(max_size=80), request=act_requests(), data=st.data())
def test_broken_bytes_are_a_named_error_or_a_message(
    raw: bytes, request: policy_pb2.ActRequest, data: st.DataObject
) -> None:
    """Random bytes, and the bytes of a message with a piece cut out or replaced."""
    whole = request.SerializeToString()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    for broken in (raw, whole[:start] + whole[end:], whole[:start] + raw + whole[end:]):
        try:
            policy_pb2.ActRequest.FromString(broken)
            legal = True
        except DecodeError:
            legal = False
        work = decoded(broken)
        if work is not None:
            assert legal
            assert np.isfinite(work.rows[:, : SPEC.state_dim + SPEC.goal_dim]).all()
            assert 1 <= len(work.rows) <= MAX_ROWS


NAMES = st.sampled_from(["state", "goal", "aim", ""])
DIMENSIONS = st.integers(0, 6) | st.integers(-(2**63), 2**63 - 1)
PARAMETERS = st.dictionaries(
    st.sampled_from(["priority", "timeout", "classification", "other"]),
    st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1))
    | st.builds(pb.InferParameter, uint64_param=st.integers(0, 5))
    | st.builds(pb.InferParameter, string_param=st.text(max_size=2))
    | st.just(pb.InferParameter()),
    max_size=2,
)
CONTENTS = st.none() | st.builds(
    pb.InferTensorContents,
    fp32_contents=VALUES,
    int64_contents=st.lists(st.integers(0, 9), max_size=2),
)


@st.composite
def tensors(draw: st.DrawFn) -> pb.ModelInferRequest.InferInputTensor:
    shape = draw(st.lists(DIMENSIONS, max_size=3) | st.sampled_from([[1, 4], [2, 4], [1, 2], [2, 2]]))
    return tensor(
        draw(NAMES),
        shape,
        datatype=draw(st.sampled_from(["FP32", "FP32", "FP32", "FP64", "BYTES", ""])),
        parameters=draw(PARAMETERS),
        contents=draw(CONTENTS),
    )


RAW = st.binary(max_size=40) | arrays(np.float32, st.sampled_from([2, 4, 8]), elements=FLOATS).map(np.ndarray.tobytes)


@given(inputs=st.lists(tensors(), max_size=3), raw=st.lists(RAW, max_size=3), parameters=PARAMETERS)
def test_any_tensors_are_rows_or_a_named_error(
    inputs: list[pb.ModelInferRequest.InferInputTensor], raw: list[bytes], parameters: dict[str, pb.InferParameter]
) -> None:
    request = pb.ModelInferRequest(inputs=inputs, raw_input_contents=raw, parameters=parameters)
    with contextlib.suppress(InvalidRequestError):
        priority, timeout_us = decode_scheduling(request)
        assert 0 <= priority < PRIORITIES
        assert timeout_us >= 0
    try:
        rows = decode_rows(request, SPEC, max_rows=MAX_ROWS)
    except InvalidRequestError:
        return
    assert sorted(given.name for given in inputs) == ["goal", "state"]
    blocks = {
        given.name: np.frombuffer(raw[index], np.float32) if raw else np.array(given.contents.fp32_contents, np.float32)
        for index, given in enumerate(inputs)
    }
    state, goal = blocks["state"].reshape(-1, SPEC.state_dim), blocks["goal"].reshape(-1, SPEC.goal_dim)
    goals = np.broadcast_to(goal, (len(state), SPEC.goal_dim))
    np.testing.assert_array_equal(rows, np.concatenate([state, goals], axis=1))


@given(
    state=rows_of(st.integers(1, MAX_ROWS), SPEC.state_dim),
    goal=rows_of(st.just(1), SPEC.goal_dim),
    swapped=st.booleans(),
    is_raw=st.booleans(),
)
def test_tensors_that_fit_are_read_as_they_were_written(
    state: np.ndarray, goal: np.ndarray, swapped: bool, is_raw: bool
) -> None:
    named = [("state", state), ("goal", goal)][:: -1 if swapped else 1]
    contents = [None if is_raw else pb.InferTensorContents(fp32_contents=block.ravel()) for _, block in named]
    inputs = [tensor(name, block.shape, contents=held) for (name, block), held in zip(named, contents, strict=True)]
    raw = [block.tobytes() for _, block in named] if is_raw else []
    request = pb.ModelInferRequest(inputs=inputs, raw_input_contents=raw)
    rows = decode_rows(request, SPEC, max_rows=MAX_ROWS)
    expected = np.concatenate([state, np.broadcast_to(goal, (len(state), SPEC.goal_dim))], axis=1)
    np.testing.assert_array_equal(rows, expected)
