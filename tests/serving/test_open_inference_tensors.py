"""Tensors and parameters of the Open Inference Protocol: what is read, and what is refused."""

from typing import Any

import numpy as np
import pytest

from serving.api.open_inference import open_inference_pb2 as pb
from serving.api.open_inference.tensors import decode_robot_id, decode_rows, decode_scheduling
from serving.errors import InvalidRequestError
from tests.open_inference import infer_request, tensor
from tests.samples import policy_spec

SPEC = policy_spec()  # 4 values of state, 2 of goal
STATE, GOAL = np.arange(8, dtype=np.float32).reshape(2, 4), np.array([[10, 20]], np.float32)
STATE_BYTES, GOAL_BYTES = STATE.tobytes(), GOAL.tobytes()
REGION = {"shared_memory_region": pb.InferParameter(string_param="a")}


def request_of(inputs: list[Any], raw: list[bytes] | None = None, **fields: Any) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(model_name=SPEC.name, inputs=inputs, raw_input_contents=raw or [], **fields)


def typed(**values: Any) -> pb.InferTensorContents:
    return pb.InferTensorContents(**values)


def test_rows_are_states_beside_their_goals() -> None:
    expected = [[0, 1, 2, 3, 10, 20], [4, 5, 6, 7, 10, 20]]
    assert decode_rows(infer_request(STATE, GOAL), SPEC, max_rows=2).tolist() == expected
    swapped = request_of([tensor("goal", [1, 2]), tensor("state", [2, 4])], [GOAL_BYTES, STATE_BYTES])
    assert decode_rows(swapped, SPEC, max_rows=2).tolist() == expected
    state, goal = typed(fp32_contents=range(8)), typed(fp32_contents=[10, 20])
    by_type = request_of([tensor("state", [2, 4], contents=state), tensor("goal", [1, 2], contents=goal)])
    assert decode_rows(by_type, SPEC, max_rows=2).tolist() == expected


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([], "state must have shape [rows, 4], got 0 dimensions"),
        ([4], "state must have shape [rows, 4], got 1 dimensions"),
        ([1] * 1000, "state must have shape [rows, 4], got 1000 dimensions"),
        ([2, 3], "state must have shape [rows, 4], got [2, 3]"),
        ([0, 4], "state must have shape [rows, 4], got [0, 4]"),
        ([-2, 4], "state must have shape [rows, 4], got [-2, 4]"),
        ([-2, -4], "state must have shape [rows, 4], got [-2, -4]"),
        ([2**63 - 1, 2**63 - 1], f"state must have shape [rows, 4], got [{2**63 - 1}, {2**63 - 1}]"),
        (
            [2**62, 4],
            f"a request may have at most 8 rows, got {2**62}; split it into several",
        ),  # 2**66 bytes, 0 modulo 2**64
        ([1, 4], "state of shape [1, 4] must hold 16 raw bytes, got 32"),
        ([3, 4], "state of shape [3, 4] must hold 48 raw bytes, got 32"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shape: list[int], message: str) -> None:
    request = request_of([tensor("state", shape), tensor("goal", [1, 2])], [STATE_BYTES, GOAL_BYTES])
    with pytest.raises(InvalidRequestError) as refused:
        decode_rows(request, SPEC, max_rows=8)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            request_of([tensor("state", [2, 4])], [STATE_BYTES]),
            "the input goal is missing; the inputs are: state, goal",
        ),
        (
            request_of([tensor("state", [2, 4]), tensor("aim\n", [1, 2])], [STATE_BYTES, GOAL_BYTES]),
            r"there is no input 'aim\n'; the inputs are: state, goal",
        ),
        (request_of([tensor("state", [2, 4])] * 2, [STATE_BYTES] * 2), "the input state is there twice; send it once"),
        (
            request_of([tensor("state", [2, 4], datatype="FP64"), tensor("goal", [1, 2])], [STATE_BYTES, GOAL_BYTES]),
            "state must have datatype FP32, got 'FP64'",
        ),
        (infer_request(STATE, np.zeros((3, 2))), "goal must have 1 row, or 2 as state has, got 3"),
        (infer_request(STATE[:1], np.zeros((2, 2))), "goal must have 1 row, or 1 as state has, got 2"),
        (
            request_of([tensor("state", [2, 4]), tensor("goal", [1, 2])], [STATE_BYTES]),
            "raw_input_contents must have one entry for each of 2 inputs, got 1",
        ),
        (
            request_of(
                [tensor("state", [2, 4], contents=typed(fp32_contents=range(8))), tensor("goal", [1, 2])],
                [STATE_BYTES, GOAL_BYTES],
            ),
            "state has contents and raw_input_contents; send only one of them",
        ),
        (
            request_of([tensor("state", [2, 4]), tensor("goal", [1, 2])]),
            "state of shape [2, 4] must hold 8 values in fp32_contents, or 32 bytes in raw_input_contents, got 0",
        ),
        (
            request_of([tensor("state", [1, 4], contents=typed(fp64_contents=range(4))), tensor("goal", [1, 2])]),
            "state of shape [1, 4] must hold 4 values in fp32_contents, or 16 bytes in raw_input_contents, got 0 and"
            " fp64_contents",
        ),
        (
            request_of([tensor("state", [2, 4], parameters=REGION), tensor("goal", [1, 2])]),
            "the parameter shared_memory_region of 'state' is not supported; send the values in the request",
        ),
        (
            infer_request(STATE, GOAL, outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="energy")]),
            "there is no output 'energy'; the output is: action",
        ),
        (
            infer_request(
                STATE,
                GOAL,
                outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="action", parameters=REGION)],
            ),
            "the parameter shared_memory_region of 'action' is not supported; send the values in the request",
        ),
        (
            infer_request(STATE, np.array([[0, np.inf]])),
            "goal of row 0 (the first is 0) has NaN or infinity; send finite values",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(request_: pb.ModelInferRequest, message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        decode_rows(request_, SPEC, max_rows=8)
    assert str(refused.value) == message


def parameters(**values: Any) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(parameters=values)


@pytest.mark.parametrize(
    ("level", "priority"),
    [(0, 0), (1, 3), (2, 2), (3, 1), (4, 0)],
)
def test_the_first_of_tritons_priorities_is_the_most_urgent_of_ours(level: int, priority: int) -> None:
    for parameter in (pb.InferParameter(uint64_param=level), pb.InferParameter(int64_param=level)):
        assert decode_scheduling(parameters(priority=parameter)) == (priority, 0)


def test_the_timeout_is_in_microseconds_and_other_parameters_are_ignored() -> None:
    timeout, other = pb.InferParameter(int64_param=2500), pb.InferParameter(string_param="x")
    assert decode_scheduling(parameters(timeout=timeout, sequence_id=other)) == (0, 2500)
    assert decode_scheduling(pb.ModelInferRequest()) == (0, 0)


@pytest.mark.parametrize(
    ("name", "parameter", "message"),
    [
        ("priority", {"int64_param": 5}, "priority must be from 1, the most urgent, to 4, or 0 for the default, got 5"),
        (
            "priority",
            {"int64_param": -1},
            "priority must be from 1, the most urgent, to 4, or 0 for the default, got -1",
        ),
        ("timeout", {"int64_param": -1}, "timeout must be a number of microseconds, or 0 for none, got -1"),
        ("timeout", {"string_param": "1"}, "timeout must be an int64_param or a uint64_param, got string_param"),
        ("timeout", {}, "timeout must be an int64_param or a uint64_param, got none"),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, parameter: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        decode_scheduling(parameters(**{name: pb.InferParameter(**parameter)}))
    assert str(refused.value) == message


def test_the_id_of_a_robot_has_at_most_128_bytes() -> None:
    for accepted in ({}, {"robot_id": pb.InferParameter(string_param="\u00e9" * 64)}):
        decode_robot_id(infer_request(STATE, GOAL, parameters=accepted))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (pb.InferParameter(string_param="\u00e9" * 64 + "a"), "robot_id must have at most 128 bytes in UTF-8, got 129"),
        (pb.InferParameter(int64_param=7), "robot_id must be a string_param, got int64_param"),
        (pb.InferParameter(), "robot_id must be a string_param, got none"),
    ],
)
def test_another_id_of_a_robot_is_refused(value: pb.InferParameter, message: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        decode_robot_id(infer_request(STATE, GOAL, parameters={"robot_id": value}))
    assert str(refused.value) == message
