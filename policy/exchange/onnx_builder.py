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
from onnx import helper

OPSET = 17  # the first one with LayerNormalization; nothing here needs a later one
IR_VERSION = 8  # of ONNX 1.12, the first release with that opset
MAX_FILE_BYTES = 2**31 - 2**25  # of the arrays in a model file; the rest is for the operators
_ALIGNMENT = 4096  # of every array in the file of external data, so that a runtime can map it into memory
_MIN_EXTERNAL_BYTES = 1024  # a smaller array stays in the model; shapes depend on some of those


class Port(NamedTuple):
    """An input or an output of a graph: float32, one row after another."""

    name: str
    rows: str  # name of the first dimension; ports with the same name have the same number of rows
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
            inputs: an array with the name of an input is the default value of that input.
            metadata: text by key, for `metadata_props`.
            version: of the model.

        Raises:
            OSError: a file cannot be written.
        """
        graph = helper.make_graph(self._nodes, name, list(map(_value, inputs)), list(map(_value, outputs)))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="kilolayer",
            model_version=version,
        )
        helper.set_model_props(model, dict(metadata))
        # Arrays are added last and in place: the functions above copy what they are given.
        if sum(array.nbytes for array in self._arrays.values()) <= max_file_bytes:
            for key, array in self._arrays.items():
                _add_tensor(model, key, array).raw_data = _little_endian(array)
        else:
            self._write_external(model, path.with_name(f"{path.name}.data"))
        path.write_bytes(model.SerializeToString(deterministic=True))

    def _write_external(self, model: onnx.ModelProto, path: Path) -> None:
        """Write the larger arrays to `path`, and add tensors that say where they are, or contain the smaller ones."""
        with path.open("wb") as file:
            for name, array in self._arrays.items():
                tensor = _add_tensor(model, name, array)
                if array.nbytes < _MIN_EXTERNAL_BYTES:
                    tensor.raw_data = _little_endian(array)
                    continue
                file.write(bytes(-file.tell() % _ALIGNMENT))
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, text in (("location", path.name), ("offset", file.tell()), ("length", array.nbytes)):
                    tensor.external_data.add(key=key, value=str(text))
                file.write(_little_endian(array))


def _value(port: Port) -> onnx.ValueInfoProto:
    shape = [port.rows] if port.size is None else [port.rows, port.size]
    return helper.make_tensor_value_info(port.name, onnx.TensorProto.FLOAT, shape, port.meaning)


def _add_tensor(model: onnx.ModelProto, name: str, array: np.ndarray) -> onnx.TensorProto:
    """Add a tensor with the shape and the type of `array`, without its values."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return model.graph.initializer.add(name=name, dims=array.shape, data_type=kind)


def _little_endian(array: np.ndarray) -> bytes:
    """Return the values as ONNX stores them."""
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
