"""Requests of the Open Inference Protocol as JSON, compared with the messages that gRPC has."""

import json
import struct
from typing import Any

import numpy as np
import pytest

from serving.api.open_inference import json_reply, json_request
from serving.api.open_inference import open_inference_pb2 as pb
from serving.api.open_inference.json_request import MAX_JSON_BYTES, JsonRequest
from serving.errors import InvalidRequestError
from tests.open_inference import infer_request

STATE = {"name": "state", "datatype": "FP32", "shape": [1, 4], "data": [1, 2.5, -3, 0]}
GOAL = {"name": "goal", "datatype": "FP32", "shape": [1, 2], "data": [8, 9]}
EXPECTED = infer_request(np.array([[1, 2.5, -3, 0]]), np.array([[8, 9]]), model_name="m", model_version="7")
WITHOUT_DATA = {"name": "state", "datatype": "FP32", "shape": [1, 4]}

PARAMETER = "the parameter 'a' must be a string, a boolean or a number of at most 64 bits"
ROWS = "data of 'state' must be one array of numbers, or one array for each row with 4 numbers"
DATA = "the input 'state' must have data, or binary_data_size"
SHARED_MEMORY = "the parameter shared_memory_region of 'state' is not supported; send the values in the request"


def read(content: Any, binary: bytes = b"", *, json_bytes: int | None = None) -> JsonRequest:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    if binary and json_bytes is None:
        json_bytes = len(raw)
    return json_request.read(raw + binary, json_bytes=json_bytes, model="m", version="7", max_rows=8)


def refusal(content: Any, binary: bytes = b"", *, json_bytes: int | None = None) -> str:
    with pytest.raises(InvalidRequestError) as error:
        read(content, binary, json_bytes=json_bytes)
    return str(error.value)


def with_state(**fields: Any) -> dict[str, Any]:
    return {"inputs": [{**STATE, **fields}, GOAL]}


@pytest.mark.parametrize("data", [[1, 2.5, -3, 0], [[1, 2.5, -3, 0]]], ids=["flat", "rows"])
def test_numbers_become_the_values_of_grpc(data: Any) -> None:
    assert read(with_state(data=data)) == JsonRequest(EXPECTED, binary=False)


def test_binary_values_follow_the_json_in_the_order_of_the_inputs() -> None:
    about = {"name": "goal", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
    state = WITHOUT_DATA | {"parameters": {"binary_data_size": 16}}
    binary = struct.pack("<4f", 1, 2.5, -3, 0) + struct.pack("<2f", 8, 9)
    assert read({"inputs": [state, about]}, binary).request == EXPECTED
    assert read({"inputs": [STATE, about]}, binary[16:]).request == EXPECTED  # beside numbers


def test_parameters_have_the_types_of_grpc() -> None:
    parameters = {"timeout": 5000, "robot_id": "r", "flag": True, "share": 0.5, "large": 2**63, "least": -(2**63)}
    request = read({"id": "é", "parameters": parameters, **with_state()}).request
    assert request.id == "é"
    assert {name: each.WhichOneof("parameter_choice") for name, each in request.parameters.items()} == {
        "timeout": "int64_param",
        "robot_id": "string_param",
        "flag": "bool_param",
        "share": "double_param",
        "large": "uint64_param",
        "least": "int64_param",
    }
    assert request.parameters["large"].uint64_param == 2**63


@pytest.mark.parametrize(
    ("fields", "binary"),
    [
        ({}, False),
        ({"parameters": {"binary_data_output": True}}, True),
        ({"outputs": [{"name": "action", "parameters": {"binary_data": True}}]}, True),
        ({"outputs": [{"name": "action"}], "parameters": {"binary_data_output": True}}, True),
        (
            {
                "outputs": [{"name": "action", "parameters": {"binary_data": False}}],
                "parameters": {"binary_data_output": True},
            },
            False,
        ),
    ],
)
def test_the_request_or_its_output_chooses_the_format_of_the_reply(fields: dict[str, Any], binary: bool) -> None:
    got = read({**with_state(), **fields})
    assert got.binary is binary
    assert not got.request.parameters
    assert [(each.name, len(each.parameters)) for each in got.request.outputs] in ([], [("action", 0)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the request is not JSON: see character 0 of 0"),
        (b'{"inputs": [}', "the request is not JSON: see character 12 of 13"),
        (b"{}{}", "the request is not JSON: see character 2 of 4"),
        (b'"\xff"', "the JSON must be UTF-8, and byte 1 is not"),
        ("{}".encode("utf-16"), "the JSON must be UTF-8, and byte 0 is not"),
        (b"[]", "the request must be an object, got an array"),
        (b"null", "the request must be an object, got null"),
        (b'{"id": NaN}', "JSON has no NaN; send finite values"),
        (b'{"id": -Infinity}', "JSON has no -Infinity; send finite values"),
        (b'{"id": "a", "id": "b"}', "an object has the key 'id' twice"),
        (b'{"id": ' + b"1" * 5000 + b"}", "the JSON has an integer with too many digits"),
        (b"[" * 81, "the JSON may have at most 80 arrays and objects; send flat data"),
        (b"{}", "the inputs are missing; they are: state, goal"),
        ({"inputs": {}}, "inputs must be an array, got an object"),
        ({"inputs": [1]}, "an input must be an object, got 1"),
        ({"inputs": [{}]}, "an input has no name"),
        ({"inputs": [{"name": "state"}]}, "the input 'state' has no datatype"),
        ({"id": 7, "inputs": []}, "id must be a string, got 7"),
        ({"id": "\ud800", "inputs": []}, "id has half of a surrogate pair, which is no character"),
        ({"parameters": [], "inputs": []}, "parameters must be an object, got an array"),
        ({"parameters": {"a": None}, "inputs": []}, f"{PARAMETER}, got null"),
        ({"parameters": {"a": 2**64}, "inputs": []}, f"{PARAMETER}, got 18446744073709551616"),
        ({"parameters": {"timeout": True}, "inputs": []}, "timeout must be an integer, in microseconds, got true"),
        ({"parameters": {"priority": "1"}, "inputs": []}, "priority must be an integer, got '1'"),
        ({"parameters": {"robot_id": 1}, "inputs": []}, "robot_id must be a string, got 1"),
        ({"parameters": {"binary_data_output": 1}, "inputs": []}, "binary_data_output must be true or false, got 1"),
        ({"outputs": [{}], "inputs": []}, "an output has no name"),
        (with_state(name=["state"]), "name of an input must be a string, got an array"),
        (with_state(shape=None), "the shape of 'state' must be an array, got null"),
        (with_state(shape=[1, 4.0]), "the shape of 'state' must hold integers, got 4.0"),
        (with_state(shape=[1, True]), "the shape of 'state' must hold integers, got true"),
        (with_state(shape=[1, 2**63]), "the shape of 'state' must hold integers, got 9223372036854775808"),
        (with_state(shape=[1, 3]), "'state' of shape [1, 3] must hold 3 values in data, got 4"),
        (with_state(shape=[2**40, 2**40]), f"'state' of shape {[2**40] * 2} must hold {2**80} values in data, got 4"),
        (with_state(data="1234"), "data of 'state' must be an array, got '1234'"),
        (with_state(data=[1, 2, 3, "4"]), "data of 'state' must hold numbers, got '4'"),
        (with_state(data=[1, 2, 3, True]), "data of 'state' must hold numbers, got true"),
        (with_state(data=[[1, 2], [3, 4]]), ROWS),
        (with_state(data=[[1, 2, 3, 4], 5]), ROWS),
        (with_state(data=[[[1, 2], 2, 3, 4]]), "data of 'state' must hold numbers, got an array"),
        (with_state(data=[1, 2, 3, 10**400]), "data of 'state' has an integer that is too large for FP32"),
        (with_state(parameters={"binary_data_size": 16}), f"{DATA}, got both"),
        ({"inputs": [WITHOUT_DATA]}, f"{DATA}, got neither"),
        ({"inputs": [WITHOUT_DATA | {"parameters": {"shared_memory_region": "r"}}]}, SHARED_MEMORY),
    ],
)
def test_what_is_wrong_is_named(content: Any, message: str) -> None:
    assert refusal(content) == message


def test_deep_nesting_is_refused() -> None:
    deep = b"[" * 2000 + b"]" * 2000
    with pytest.raises(InvalidRequestError, match="^the JSON is nested too deeply; send flat data$"):
        json_request.read(deep, json_bytes=None, model="m", version="", max_rows=4096)


@pytest.mark.parametrize(
    ("size", "binary", "message"),
    [
        (
            17,
            16,
            "binary_data_size of 'state' must be at most the 16 bytes that are left in the body, got 17; the header"
            " Inference-Header-Content-Length says where the binary data begins",
        ),
        (-1, 16, "binary_data_size of 'state' must be a number of bytes, got -1"),
        ("16", 16, "binary_data_size of 'state' must be a number of bytes, got '16'"),
        (16, 17, "the inputs must use the 17 bytes after the JSON, and their binary_data_size add up to 16"),
    ],
)
def test_binary_data_that_does_not_fit_is_refused(size: Any, binary: int, message: str) -> None:
    about = {"name": "state", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": size}}
    assert refusal({"inputs": [about]}, bytes(binary)) == message


def test_the_length_of_the_json_is_limited() -> None:
    assert (
        refusal(b"{}", json_bytes=3) == "Inference-Header-Content-Length must be at most the 2 bytes of the body, got 3"
    )
    most = MAX_JSON_BYTES
    assert refusal(b" " * (most + 1)) == f"the JSON may have at most {most} bytes, got {most + 1}; send binary tensors"
    assert refusal(b" " * most) == f"the request is not JSON: see character {most} of {most}"


def test_other_datatypes_are_left_to_the_check_of_both_transports() -> None:
    request = read(with_state(datatype="BYTES", data=["a"])).request
    assert (request.inputs[0].datatype, request.raw_input_contents[0]) == ("BYTES", b"")
    assert read(with_state(shape=[-1, 4])).request.raw_input_contents[0] == b""


REPLY = pb.ModelInferResponse(
    model_name="m",
    model_version="7",
    parameters={"kilolayer-out-of-range": pb.InferParameter(bool_param=True)},
    outputs=[pb.ModelInferResponse.InferOutputTensor(name="action", datatype="FP32", shape=[2, 1])],
    raw_output_contents=[struct.pack("<2f", 0.5, -1)],
)


def test_a_reply_has_its_values_as_numbers_or_behind_the_json() -> None:
    about = {"model_name": "m", "model_version": "7", "parameters": {"kilolayer-out-of-range": True}}
    action = {"name": "action", "datatype": "FP32", "shape": [2, 1]}
    written = json_reply.write(REPLY, binary=False)
    assert written.json_bytes is None
    assert json.loads(written.body) == about | {"outputs": [action | {"data": [0.5, -1.0]}]}
    written = json_reply.write(REPLY, binary=True)
    assert written.json_bytes is not None
    head, values = written.body[: written.json_bytes], written.body[written.json_bytes :]
    assert json.loads(head) == about | {"outputs": [action | {"parameters": {"binary_data_size": 8}}]}
    assert values == struct.pack("<2f", 0.5, -1)


def test_a_reply_with_many_values_must_be_binary() -> None:
    output = pb.ModelInferResponse.InferOutputTensor(name="action", datatype="FP32", shape=[8193, 1])
    reply = pb.ModelInferResponse(outputs=[output], raw_output_contents=[bytes(4 * 8193)])
    assert json_reply.write(reply, binary=True).body[-4 * 8193 :] == bytes(4 * 8193)
    with pytest.raises(InvalidRequestError, match="the reply has 8193 values, and JSON may have at most 8192"):
        json_reply.write(reply, binary=False)


def test_damaged_requests_are_read_or_refused_in_one_line() -> None:
    random = np.random.default_rng(0)
    good = json.dumps(
        {"id": "a", "parameters": {"timeout": 1, "robot_id": "r"}, **with_state(), "outputs": []}
    ).encode()
    pieces = [
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b",",
        b":",
        b"null",
        b"true",
        b"1e999",
        b"-",
        b"\\ud800",
        b"\xff",
        b"\0",
        b"9" * 30,
    ]
    refusals: list[str] = []
    for _ in range(3000):
        raw = bytearray(good)
        for _ in range(random.integers(1, 4)):
            start = int(random.integers(len(raw)))
            raw[start : start + int(random.integers(0, 12))] = pieces[random.integers(len(pieces))]
        try:
            read(bytes(raw))
        except InvalidRequestError as error:
            refusals.append(str(error))
    assert len(refusals) > 2000
    assert all("\n" not in each and len(each) < 300 for each in refusals)
