"""Let atheris search for messages that the decoders neither read nor refuse by name; it needs atheris.

    pip install atheris
    python -m tests.faults.fuzz_decoders FOLDER -runs=1000000

FOLDER gets a valid message of each method, from which the search begins, and the messages that reached new lines. The
first byte chooses the method. Any other exception than InvalidRequestError ends the search with the bytes.
"""

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kilolayer._internal.blocks_pb2 import ActRequestBlocks, ScoreRequestBlocks
from kilolayer.v1 import policy_pb2 as pb
from serving.errors import InvalidRequestError
from tests.samples import policy_spec

atheris: Any = importlib.import_module("atheris")  # not one of the project's dependencies

# atheris sees the branches of what is imported here.
with atheris.instrument_imports(include=["serving.api", "serving.api.open_inference"]):
    from serving.api import codec
    from serving.api.handlers import parse, parse_blocks
    from serving.api.open_inference import open_inference_pb2 as inference
    from serving.api.open_inference import tensors

_SPEC = policy_spec()
_MAX_ROWS = 5


def _act(raw: bytes) -> np.ndarray:
    request = parse_blocks(raw, blocks_type=ActRequestBlocks, public_type=pb.ActRequest)
    return codec.decode_act(request, _SPEC, max_rows=_MAX_ROWS).rows


def _score(raw: bytes) -> np.ndarray:
    request = parse_blocks(raw, blocks_type=ScoreRequestBlocks, public_type=pb.ScoreRequest)
    return codec.decode_score(request, _SPEC, max_rows=_MAX_ROWS).rows


def _infer(raw: bytes) -> np.ndarray:
    request = parse(raw, inference.ModelInferRequest)
    tensors.decode_scheduling(request)
    return tensors.decode_rows(request, _SPEC, max_rows=_MAX_ROWS)


_tensor = functools.partial(inference.ModelInferRequest.InferInputTensor, datatype="FP32")
_VALID = (
    pb.ActRequest(state=[1, 2, 3, 4], goal=[5, 6]),
    pb.ScoreRequest(state=[1, 2, 3, 4], action=[0, 1], goal=[5, 6]),
    inference.ModelInferRequest(
        inputs=[_tensor(name="state", shape=[1, 4]), _tensor(name="goal", shape=[1, 2])],
        raw_input_contents=[bytes(16), bytes(8)],
    ),
)
_DECODERS: tuple[Callable[[bytes], np.ndarray], ...] = (_act, _score, _infer)


def decode(data: bytes) -> None:
    """Decode the bytes after the first with the method that the first one chooses."""
    if not data:
        return
    with contextlib.suppress(InvalidRequestError):
        rows = _DECODERS[data[0] % len(_DECODERS)](data[1:])
        assert 1 <= len(rows) <= _MAX_ROWS
        assert rows.dtype == np.float32


def main(arguments: list[str]) -> None:
    """Search until an exception, or for as many runs as the flags after the program and the folder say."""
    program, folder, *flags = arguments
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number, message in enumerate(_VALID):
        (Path(folder) / str(number)).write_bytes(bytes([number]) + message.SerializeToString())
    atheris.Setup([program, folder, *flags], decode)
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    main(sys.argv)
