"""Collect the operators and arrays of an ONNX graph, and write them as a model file.

A model of more than 2 GB does not fit into one protobuf message. Its arrays then go into a second file next to it,
`NAME.onnx.data`, which ONNX calls external data. The same operators and arrays give the same bytes.

This module needs the package `onnx` (extra `export`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 17  # the first one with LayerNormalization; nothing here needs a later one
IR_VERSION = 8  # of ONNX 1.12, the first release with that opset
MAX_FILE_BYTES = 2**31 - 2**25  # of the arrays in a model file; the rest is for the operators
_ALIGNMENT = 4096  # of every array in the file of external data, so that a runtime can map it into memory
_MIN_EXTERNAL_BYTES = 1024  # a smaller array stays in the model; shapes depend on some of those


class Port(NamedTuple):
    """An input or an output of a graph: float32, one row after another."""

    name: str
    rows: str  # name of the first dimension; ports with the same name have equally many rows
    size: int | None  # values in a row; None for one number without an axis
    meaning: str


class GraphBuilder:
    """Operators in the order in which they are computed, and the arrays that they use."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._arrays: dict[str, np.ndarray] = {}

    def array(self, name: str, values: Any, *, dtype: type[np.generic] = np.float32) -> str:
        """Add an array, unless the graph has one of that name, and return its name."""
        self._arrays.setdefault(name, np.asarray(values, dtype))
        return name

    def add(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add an operator with one output; both are called `name`, which is returned."""
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def split(self, value: str, names: Sequence[str], *, sizes: Sequence[int]) -> list[str]:
        """Cut `value: [rows, n]` into parts [rows, size], and return their names."""
        lengths = self.array(f"{names[0]}.sizes", sizes, dtype=np.int64)
        self._nodes.append(helper.make_node("Split", [value, lengths], names, name=f"{names[0]}.split", axis=1))
        return list(names)

    def save(
        self,
        path: Path,
        *,
        name: str,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        metadata: Mapping[str, str],
        version: int,
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        """Write the model to `path`; arrays of more than `max_file_bytes` in all go to `path` + `.data`.

        Args:
            name: of the graph.
            inputs: an array with the name of an input is the value of that input where none is fed.
            metadata: text by key, for `metadata_props`.
            version: of the model.

        Raises:
            OSError: a file cannot be written.
        """
        if sum(array.nbytes for array in self._arrays.values()) <= max_file_bytes:
            tensors = [numpy_helper.from_array(array, key) for key, array in self._arrays.items()]
        else:
            tensors = _with_external(path.with_name(f"{path.name}.data"), self._arrays)
        graph = helper.make_graph(self._nodes, name, list(map(_value, inputs)), list(map(_value, outputs)), tensors)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="kilolayer",
            model_version=version,
        )
        helper.set_model_props(model, dict(metadata))
        path.write_bytes(model.SerializeToString(deterministic=True))


def _value(port: Port) -> onnx.ValueInfoProto:
    shape = [port.rows] if port.size is None else [port.rows, port.size]
    return helper.make_tensor_value_info(port.name, onnx.TensorProto.FLOAT, shape, port.meaning)


def _with_external(path: Path, arrays: Mapping[str, np.ndarray]) -> list[onnx.TensorProto]:
    """Write the larger ones of `arrays` to `path`, and return tensors that contain the others or say where they are."""
    tensors: list[onnx.TensorProto] = []
    with path.open("wb") as file:
        for name, array in arrays.items():
            if array.nbytes < _MIN_EXTERNAL_BYTES:
                tensors.append(numpy_helper.from_array(array, name))
                continue
            file.write(bytes(-file.tell() % _ALIGNMENT))
            tensor = onnx.TensorProto(
                name=name,
                dims=array.shape,
                data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
                data_location=onnx.TensorProto.EXTERNAL,
            )
            for key, text in (("location", path.name), ("offset", file.tell()), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(text))
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            tensors.append(tensor)
    return tensors
