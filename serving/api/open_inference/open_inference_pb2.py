"""The messages of protos/inference/open_inference.proto, in a descriptor pool of their own.

The default pool of a process refuses a second definition of a name. Other packages, such as tritonclient, define
`inference` too, so a generated module, which registers with the default pool, could not be imported beside them.
`make protos` writes the descriptors and the type stubs of this module; this file is the rest of a generated module.
"""

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper


def _load(file_name: str) -> dict[str, Any]:
    """Return messages, enumerations and their values, by name, of the only file in the descriptor set `file_name`."""
    raw = Path(__file__).with_name(file_name).read_bytes()
    (described,) = descriptor_pb2.FileDescriptorSet.FromString(raw).file
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(described.SerializeToString())
    file = pool.FindFileByName(described.name)
    names: dict[str, Any] = {"DESCRIPTOR": file}
    for name, message in file.message_types_by_name.items():
        names[name] = message_factory.GetMessageClass(message)
    for name, enum in file.enum_types_by_name.items():
        names[name] = EnumTypeWrapper(enum)
        names |= {value.name: value.number for value in enum.values}
    return names


globals().update(_load("open_inference.binpb"))
