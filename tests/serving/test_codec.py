"""Bytes to rows and back, against protobuf's own reading of the public messages and against numbers by hand."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor

from kilolayer._internal import blocks_pb2
from kilolayer.v1 import policy_pb2
from serving.api import codec
from serving.api.handlers import parse_blocks
from serving.engine.engine import Kind
from serving.errors import InvalidRequestError
from tests.samples import policy_spec

SPEC = policy_spec()
EIGHT = [1, 2, 3, 4, 5, 6, 7, 8]


def parse_act(raw: bytes) -> blocks_pb2.ActRequestBlocks:
    return parse_blocks(raw, blocks_pb2.ActRequestBlocks, policy_pb2.ActRequest)


def parse_score(raw: bytes) -> blocks_pb2.ScoreRequestBlocks:
    return parse_blocks(raw, blocks_pb2.ScoreRequestBlocks, policy_pb2.ScoreRequest)


def encoded(**fields: Any) -> bytes:
    return policy_pb2.ActRequest(**fields).SerializeToString()


def work_of(max_rows: int = 8, **fields: Any) -> codec.ComputeRequest:
    return codec.decode_act(parse_act(encoded(**fields)), SPEC, max_rows=max_rows)


@pytest.mark.parametrize("name", ["ActRequest", "ActResponse", "ScoreRequest", "ScoreResponse"])
def test_the_messages_with_blocks_differ_from_the_public_ones_in_nothing_else(name: str) -> None:
    public = getattr(policy_pb2, name).DESCRIPTOR.fields
    blocks = {field.name: field for field in getattr(blocks_pb2, name + "Blocks").DESCRIPTOR.fields}
    assert blocks.keys() == {field.name for field in public}
    for field in public:
        twin = blocks[field.name]
        assert twin.number == field.number
        if field.is_repeated:
            assert (field.type, twin.type) == (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_BYTES)
        else:
            assert (twin.type, twin.message_type, twin.enum_type) == (field.type, field.message_type, field.enum_type)


def test_a_block_of_broken_floats_is_named() -> None:
    raw = blocks_pb2.ActRequestBlocks(state=b"\0" * 7, goal=b"\0" * 8).SerializeToString()
    with pytest.raises(InvalidRequestError, match="state must hold 4 bytes for each value, got 7 bytes"):
        codec.decode_act(parse_act(raw), SPEC, max_rows=8)


def test_each_state_stands_beside_its_goal() -> None:
    work = work_of(state=EIGHT, goal=[10, 20, 30, 40])
    assert work.kind is Kind.ACT
    assert work.rows.dtype == np.float32
    assert work.rows.tolist() == [[1, 2, 3, 4, 10, 20], [5, 6, 7, 8, 30, 40]]
    one_goal = work_of(state=EIGHT, goal=[10, 20])
    assert one_goal.rows.tolist() == [[1, 2, 3, 4, 10, 20], [5, 6, 7, 8, 10, 20]]
    with pytest.raises(InvalidRequestError, match=re.escape("a request may have at most 1 rows, got 2")):
        work_of(1, state=EIGHT, goal=[10, 20])


def test_sampled_rows_have_noise_columns() -> None:
    work = work_of(state=EIGHT, goal=[10, 20], mode="ACT_MODE_STOCHASTIC", seed=2**32 * 3 + 4)
    assert work.kind is Kind.SAMPLE
    assert work.rows[:, :6].tolist() == [[1, 2, 3, 4, 10, 20], [5, 6, 7, 8, 10, 20]]
    assert work.rows[:, 6:].view(np.uint32).tolist() == [[4, 3, 0, 0], [4, 3, 1, 0]]


def test_best_of_repeats_each_row_for_its_candidates() -> None:
    work = work_of(state=EIGHT, goal=[10, 20], mode="ACT_MODE_BEST_OF", candidates=3, seed=1)
    assert work.kind is Kind.BEST_OF
    assert work.rows[:, 0].tolist() == [1, 1, 1, 5, 5, 5]
    assert work.rows[:, 8:].view(np.uint32).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert work.candidates == 3


def test_a_score_puts_the_action_between_state_and_goal() -> None:
    request = policy_pb2.ScoreRequest(state=EIGHT, action=[0.5, -0.5, 1, -1], goal=[10, 20])
    work = codec.decode_score(parse_score(request.SerializeToString()), SPEC, max_rows=8)
    assert work.kind is Kind.SCORE
    assert work.rows.tolist() == [[1, 2, 3, 4, 0.5, -0.5, 10, 20], [5, 6, 7, 8, 1, -1, 10, 20]]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0, 0], "action must hold 4 values for 2 rows of point_u_maze, got 2"),
        ([0, 0, 0, 1.5], "action must be within [-1, 1], got a value of magnitude 1.5"),
        ([0, 0, 0, float("nan")], "action of row 1 (the first is 0) has NaN or infinity; send finite values"),
    ],
)
def test_an_action_that_does_not_fit_is_refused(action: list[float], message: str) -> None:
    request = policy_pb2.ScoreRequest(state=EIGHT, action=action, goal=[0, 0])
    with pytest.raises(InvalidRequestError, match=re.escape(message)):
        codec.decode_score(parse_score(request.SerializeToString()), SPEC, max_rows=8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"state": [1] * 4, "goal": [1]}, "goal must hold 2 values of point_u_maze, got 1"),
        ({"state": EIGHT, "goal": [1] * 3}, "goal must hold 2 values, or 4 for 2 rows, of point_u_maze, got 3"),
        (
            {"state": [], "goal": [1, 2]},
            "each row of state needs 4 values of point_u_maze (x [m], y [m], ...), got 0 values in all",
        ),
        ({"state": EIGHT, "goal": [1, 2], "rows": 1}, "state must hold 4 values for 1 rows of point_u_maze, got 8"),
    ],
)
def test_a_block_of_another_size_is_refused_with_both_sizes(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        work_of(**fields)
    assert str(refused.value) == message


def test_a_large_block_is_read_without_a_loop_over_values() -> None:
    """A message of 65,536 rows costs a few hundred bytecodes, not hundreds of thousands."""
    import sys

    spec = dataclasses.replace(SPEC, state_names=tuple(f"s{index}" for index in range(29)))
    raw = policy_pb2.ActRequest(state=np.ones(65536 * 29, np.float32), goal=[0, 0]).SerializeToString()
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work = codec.decode_act(parse_act(raw), spec, max_rows=65536)
    finally:
        sys.setprofile(None)
    assert work.rows.shape == (65536, 31)
    assert calls < 300
