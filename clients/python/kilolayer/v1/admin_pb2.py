"""Messages of protos/kilolayer/v1/admin.proto; admin_pb2.pyi lists them."""

from kilolayer._internal.descriptors import define_messages

define_messages(__name__, globals())
