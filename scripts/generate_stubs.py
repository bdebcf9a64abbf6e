"""Write the messages of protos/kilolayer for Python: a descriptor and type stubs for each file.

Generated Python code would require the protobuf version of its generator or newer.
A descriptor, loaded by kilolayer/_internal/descriptors.py, works with every version that the client supports.
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

REPOSITORY = Path(__file__).parents[1]


class StubError(Exception):
    """A file of the contract could not be compiled; protoc has printed why."""


def generate(protos: Path, folder: Path) -> None:
    """Write NAME.binpb and NAME_pb2.pyi into `folder` for every file of ours below `protos`.

    Raises:
        StubError: protoc refuses a file.
    """
    # protos/kilolayer/internal becomes the Python package kilolayer._internal: private by its name.
    includes = ("-I", f"kilolayer/_internal={protos / 'kilolayer/internal'}", "-I", str(protos))
    for source in sorted((protos / "kilolayer").rglob("*.proto")):
        name = source.relative_to(protos).as_posix().replace("kilolayer/internal/", "kilolayer/_internal/")
        with tempfile.NamedTemporaryFile(suffix=".binpb") as described:
            outputs = (f"--pyi_out={folder}", f"--descriptor_set_out={described.name}")
            if protoc.main(["protoc", *includes, *outputs, name]) != 0:
                raise StubError(f"protoc cannot compile {source}")
            (file,) = descriptor_pb2.FileDescriptorSet.FromString(described.read()).file
        _clear_json_names(file)
        (folder / name).with_suffix(".binpb").write_bytes(file.SerializeToString())
        stub = (folder / name).with_name(source.stem + "_pb2.pyi")
        stub.write_text(_with_complete_types(stub.read_text()))


def _clear_json_names(container: descriptor_pb2.FileDescriptorProto | descriptor_pb2.DescriptorProto) -> None:
    """Clear the fields that protoc omits from generated code: protobuf accepts a file twice only if both are equal."""
    file = isinstance(container, descriptor_pb2.FileDescriptorProto)
    for message in container.message_type if file else container.nested_type:
        for field in message.field:
            field.ClearField("json_name")
        _clear_json_names(message)


def _with_complete_types(stub: str) -> str:
    """Give every Mapping its type arguments, which protoc leaves out and strict type checkers miss."""
    complete = re.sub(r"(?<!as )_Mapping\b", "_Mapping[str, _Any]", stub)
    return (
        complete if complete == stub else complete.replace("from typing import ", "from typing import Any as _Any, ", 1)
    )


def main(arguments: Sequence[str]) -> None:
    """Generate what protos/kilolayer describes, into the folder that `arguments` name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=REPOSITORY / "clients/python",
        help="an existing folder to write into (default: clients/python)",
    )
    folder: Path = parser.parse_args(arguments).folder
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder; create it, or leave the argument out")
    generate(REPOSITORY / "protos", folder)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except StubError as error:
        sys.exit(f"error: {error}")
