"""Message classes from descriptors, in place of generated code.

Generated code requires the protobuf version of its generator or newer. A descriptor works with every version, so the
client can be installed beside a robot's SDK that needs an older protobuf.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.internal import builder


def define_messages(module: str, namespace: dict[str, Any], *, imports: Sequence[FileDescriptor] = ()) -> None:
    """Define in `namespace` everything that a generated module of the same name would.

    Args:
        module: its dotted name, ending in NAME_pb2; the descriptor is the file NAME.binpb beside it.
        namespace: the module's globals.
        imports: the files that this one imports. protobuf knows them once their modules are imported.
    """
    package, _, name = module.rpartition(".")
    raw = pkgutil.get_data(package, name.replace("_pb2", ".binpb"))
    assert raw is not None, "the import system of the package reads files"
    file = descriptor_pool.Default().AddSerializedFile(raw)
    assert [each.name for each in file.dependencies] == [each.name for each in imports]
    namespace["DESCRIPTOR"] = file
    builder.BuildMessageAndEnumDescriptors(file, namespace)
    builder.BuildTopDescriptorsAndMessages(file, module, namespace)
