from kilolayer.v1 import policy_pb2 as _policy_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import Any as _Any, ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ActRequestBlocks(_message.Message):
    __slots__ = ("policy", "version", "state", "goal", "sequence", "rows", "mode", "seed", "candidates", "priority", "timeout_us", "robot_id")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    GOAL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_US_FIELD_NUMBER: _ClassVar[int]
    ROBOT_ID_FIELD_NUMBER: _ClassVar[int]
    policy: str
    version: str
    state: bytes
    goal: bytes
    sequence: int
    rows: int
    mode: _policy_pb2.ActMode
    seed: int
    candidates: int
    priority: int
    timeout_us: int
    robot_id: str
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[bytes] = ..., goal: _Optional[bytes] = ..., sequence: _Optional[int] = ..., rows: _Optional[int] = ..., mode: _Optional[_Union[_policy_pb2.ActMode, str]] = ..., seed: _Optional[int] = ..., candidates: _Optional[int] = ..., priority: _Optional[int] = ..., timeout_us: _Optional[int] = ..., robot_id: _Optional[str] = ...) -> None: ...

class ActResponseBlocks(_message.Message):
    __slots__ = ("action", "policy", "version", "sequence", "queue_us", "compute_us", "batch_rows", "failure", "action_chunk", "out_of_range")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ACTION_CHUNK_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_RANGE_FIELD_NUMBER: _ClassVar[int]
    action: bytes
    policy: str
    version: str
    sequence: int
    queue_us: int
    compute_us: int
    batch_rows: int
    failure: _policy_pb2.Failure
    action_chunk: int
    out_of_range: bool
    def __init__(self, action: _Optional[bytes] = ..., policy: _Optional[str] = ..., version: _Optional[str] = ..., sequence: _Optional[int] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., batch_rows: _Optional[int] = ..., failure: _Optional[_Union[_policy_pb2.Failure, _Mapping[str, _Any]]] = ..., action_chunk: _Optional[int] = ..., out_of_range: _Optional[bool] = ...) -> None: ...

class ScoreRequestBlocks(_message.Message):
    __slots__ = ("policy", "version", "state", "action", "goal", "sequence", "rows", "priority", "timeout_us", "robot_id")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    GOAL_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_US_FIELD_NUMBER: _ClassVar[int]
    ROBOT_ID_FIELD_NUMBER: _ClassVar[int]
    policy: str
    version: str
    state: bytes
    action: bytes
    goal: bytes
    sequence: int
    rows: int
    priority: int
    timeout_us: int
    robot_id: str
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[bytes] = ..., action: _Optional[bytes] = ..., goal: _Optional[bytes] = ..., sequence: _Optional[int] = ..., rows: _Optional[int] = ..., priority: _Optional[int] = ..., timeout_us: _Optional[int] = ..., robot_id: _Optional[str] = ...) -> None: ...

class ScoreResponseBlocks(_message.Message):
    __slots__ = ("energy", "policy", "version", "sequence", "queue_us", "compute_us", "batch_rows")
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    energy: bytes
    policy: str
    version: str
    sequence: int
    queue_us: int
    compute_us: int
    batch_rows: int
    def __init__(self, energy: _Optional[bytes] = ..., policy: _Optional[str] = ..., version: _Optional[str] = ..., sequence: _Optional[int] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., batch_rows: _Optional[int] = ...) -> None: ...
