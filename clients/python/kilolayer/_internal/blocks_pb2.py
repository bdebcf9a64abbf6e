"""Messages of protos/kilolayer/internal/blocks.proto; blocks_pb2.pyi lists them."""

from kilolayer._internal.descriptors import define_messages
from kilolayer.v1 import policy_pb2

define_messages(__name__, globals(), imports=(policy_pb2.DESCRIPTOR,))
