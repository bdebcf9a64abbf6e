"""Calls by the Open Inference Protocol, without any client of it."""

from typing import Any

import grpc
import numpy as np

from serving.api.open_inference import open_inference_pb2 as pb

SERVICE = "/inference.GRPCInferenceService"


def method(channel: Any, name: str) -> Any:
    """A unary method of the service, on a channel of `grpc` or `grpc.aio`; its messages bear its name."""
    request_type: Any = getattr(pb, f"{name}Request")
    reply_type: Any = getattr(pb, f"{name}Response")
    return channel.unary_unary(
        f"{SERVICE}/{name}",
        request_serializer=request_type.SerializeToString,
        response_deserializer=reply_type.FromString,
    )


def stream(channel: Any) -> Any:
    return channel.stream_stream(
        f"{SERVICE}/ModelStreamInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )


def tensor(name: str, shape: Any, *, datatype: str = "FP32", **fields: Any) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape, **fields)


def infer_request(state: np.ndarray, goal: np.ndarray, **fields: Any) -> pb.ModelInferRequest:
    """State and goal as raw tensors of the policy of the samples."""
    inputs = [tensor("state", state.shape), tensor("goal", goal.shape)]
    raw = [np.asarray(values, "<f4").tobytes() for values in (state, goal)]
    fields = {"model_name": "point_u_maze", **fields}
    return pb.ModelInferRequest(inputs=inputs, raw_input_contents=raw, **fields)


def actions(reply: pb.ModelInferResponse) -> np.ndarray:
    """The actions [rows, action_dim] of a reply."""
    (output,), (raw,) = reply.outputs, reply.raw_output_contents
    assert (output.name, output.datatype) == ("action", "FP32")
    assert not output.HasField("contents")
    return np.frombuffer(raw, "<f4").reshape(tuple(output.shape))


def refusal(error: Any) -> tuple[grpc.StatusCode, str]:
    """Status and message of an error that a call raised."""
    return error.code(), error.details()
