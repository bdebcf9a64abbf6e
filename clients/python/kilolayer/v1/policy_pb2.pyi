from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import Any as _Any, ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ActMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACT_MODE_UNSPECIFIED: _ClassVar[ActMode]
    ACT_MODE_DETERMINISTIC: _ClassVar[ActMode]
    ACT_MODE_STOCHASTIC: _ClassVar[ActMode]
    ACT_MODE_BEST_OF: _ClassVar[ActMode]

class ReportStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPORT_STATUS_UNSPECIFIED: _ClassVar[ReportStatus]
    REPORT_STATUS_ACCEPTED: _ClassVar[ReportStatus]
    REPORT_STATUS_DUPLICATE: _ClassVar[ReportStatus]
    REPORT_STATUS_UNKNOWN: _ClassVar[ReportStatus]
ACT_MODE_UNSPECIFIED: ActMode
ACT_MODE_DETERMINISTIC: ActMode
ACT_MODE_STOCHASTIC: ActMode
ACT_MODE_BEST_OF: ActMode
REPORT_STATUS_UNSPECIFIED: ReportStatus
REPORT_STATUS_ACCEPTED: ReportStatus
REPORT_STATUS_DUPLICATE: ReportStatus
REPORT_STATUS_UNKNOWN: ReportStatus

class ActRequest(_message.Message):
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
    state: _containers.RepeatedScalarFieldContainer[float]
    goal: _containers.RepeatedScalarFieldContainer[float]
    sequence: int
    rows: int
    mode: ActMode
    seed: int
    candidates: int
    priority: int
    timeout_us: int
    robot_id: str
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[_Iterable[float]] = ..., goal: _Optional[_Iterable[float]] = ..., sequence: _Optional[int] = ..., rows: _Optional[int] = ..., mode: _Optional[_Union[ActMode, str]] = ..., seed: _Optional[int] = ..., candidates: _Optional[int] = ..., priority: _Optional[int] = ..., timeout_us: _Optional[int] = ..., robot_id: _Optional[str] = ...) -> None: ...

class ActResponse(_message.Message):
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
    action: _containers.RepeatedScalarFieldContainer[float]
    policy: str
    version: str
    sequence: int
    queue_us: int
    compute_us: int
    batch_rows: int
    failure: Failure
    action_chunk: int
    out_of_range: bool
    def __init__(self, action: _Optional[_Iterable[float]] = ..., policy: _Optional[str] = ..., version: _Optional[str] = ..., sequence: _Optional[int] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., batch_rows: _Optional[int] = ..., failure: _Optional[_Union[Failure, _Mapping[str, _Any]]] = ..., action_chunk: _Optional[int] = ..., out_of_range: _Optional[bool] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    reason: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ScoreRequest(_message.Message):
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
    state: _containers.RepeatedScalarFieldContainer[float]
    action: _containers.RepeatedScalarFieldContainer[float]
    goal: _containers.RepeatedScalarFieldContainer[float]
    sequence: int
    rows: int
    priority: int
    timeout_us: int
    robot_id: str
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[str] = ..., state: _Optional[_Iterable[float]] = ..., action: _Optional[_Iterable[float]] = ..., goal: _Optional[_Iterable[float]] = ..., sequence: _Optional[int] = ..., rows: _Optional[int] = ..., priority: _Optional[int] = ..., timeout_us: _Optional[int] = ..., robot_id: _Optional[str] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("energy", "policy", "version", "sequence", "queue_us", "compute_us", "batch_rows")
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    energy: _containers.RepeatedScalarFieldContainer[float]
    policy: str
    version: str
    sequence: int
    queue_us: int
    compute_us: int
    batch_rows: int
    def __init__(self, energy: _Optional[_Iterable[float]] = ..., policy: _Optional[str] = ..., version: _Optional[str] = ..., sequence: _Optional[int] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., batch_rows: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("policy", "version", "robot_id", "episode", "reached", "time_at_goal")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROBOT_ID_FIELD_NUMBER: _ClassVar[int]
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    TIME_AT_GOAL_FIELD_NUMBER: _ClassVar[int]
    policy: str
    version: str
    robot_id: str
    episode: int
    reached: bool
    time_at_goal: int
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[str] = ..., robot_id: _Optional[str] = ..., episode: _Optional[int] = ..., reached: _Optional[bool] = ..., time_at_goal: _Optional[int] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: ReportStatus
    def __init__(self, status: _Optional[_Union[ReportStatus, str]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("policy", "version")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    policy: str
    version: str
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("spec", "version", "manifest_sha256", "max_rows")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    spec: PolicySpec
    version: str
    manifest_sha256: str
    max_rows: int
    def __init__(self, spec: _Optional[_Union[PolicySpec, _Mapping[str, _Any]]] = ..., version: _Optional[str] = ..., manifest_sha256: _Optional[str] = ..., max_rows: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("policies",)
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[PolicyEntry]
    def __init__(self, policies: _Optional[_Iterable[_Union[PolicyEntry, _Mapping[str, _Any]]]] = ...) -> None: ...

class PolicyEntry(_message.Message):
    __slots__ = ("policy", "versions", "live_version", "is_default")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    LIVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    policy: str
    versions: _containers.RepeatedScalarFieldContainer[str]
    live_version: str
    is_default: bool
    def __init__(self, policy: _Optional[str] = ..., versions: _Optional[_Iterable[str]] = ..., live_version: _Optional[str] = ..., is_default: _Optional[bool] = ...) -> None: ...

class PolicySpec(_message.Message):
    __slots__ = ("name", "environment", "state_dim", "goal_dim", "action_dim", "state_names", "goal_names", "action_names", "action_low", "action_high", "control_period_s", "success_radius", "actor_depth", "actor_width", "critic_depth", "critic_width", "representation_dim", "energy", "activation", "layer_norm", "residual", "actuator_kind", "rest_action", "action_meaning", "max_action_change", "action_chunk", "critic", "normalize_observations", "normalization_mean", "normalization_std", "seen_mean", "seen_std", "seen_low", "seen_high", "state_quaternions", "goal_quaternions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    STATE_DIM_FIELD_NUMBER: _ClassVar[int]
    GOAL_DIM_FIELD_NUMBER: _ClassVar[int]
    ACTION_DIM_FIELD_NUMBER: _ClassVar[int]
    STATE_NAMES_FIELD_NUMBER: _ClassVar[int]
    GOAL_NAMES_FIELD_NUMBER: _ClassVar[int]
    ACTION_NAMES_FIELD_NUMBER: _ClassVar[int]
    ACTION_LOW_FIELD_NUMBER: _ClassVar[int]
    ACTION_HIGH_FIELD_NUMBER: _ClassVar[int]
    CONTROL_PERIOD_S_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_RADIUS_FIELD_NUMBER: _ClassVar[int]
    ACTOR_DEPTH_FIELD_NUMBER: _ClassVar[int]
    ACTOR_WIDTH_FIELD_NUMBER: _ClassVar[int]
    CRITIC_DEPTH_FIELD_NUMBER: _ClassVar[int]
    CRITIC_WIDTH_FIELD_NUMBER: _ClassVar[int]
    REPRESENTATION_DIM_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    LAYER_NORM_FIELD_NUMBER: _ClassVar[int]
    RESIDUAL_FIELD_NUMBER: _ClassVar[int]
    ACTUATOR_KIND_FIELD_NUMBER: _ClassVar[int]
    REST_ACTION_FIELD_NUMBER: _ClassVar[int]
    ACTION_MEANING_FIELD_NUMBER: _ClassVar[int]
    MAX_ACTION_CHANGE_FIELD_NUMBER: _ClassVar[int]
    ACTION_CHUNK_FIELD_NUMBER: _ClassVar[int]
    CRITIC_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_MEAN_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_STD_FIELD_NUMBER: _ClassVar[int]
    SEEN_MEAN_FIELD_NUMBER: _ClassVar[int]
    SEEN_STD_FIELD_NUMBER: _ClassVar[int]
    SEEN_LOW_FIELD_NUMBER: _ClassVar[int]
    SEEN_HIGH_FIELD_NUMBER: _ClassVar[int]
    STATE_QUATERNIONS_FIELD_NUMBER: _ClassVar[int]
    GOAL_QUATERNIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    environment: str
    state_dim: int
    goal_dim: int
    action_dim: int
    state_names: _containers.RepeatedScalarFieldContainer[str]
    goal_names: _containers.RepeatedScalarFieldContainer[str]
    action_names: _containers.RepeatedScalarFieldContainer[str]
    action_low: _containers.RepeatedScalarFieldContainer[float]
    action_high: _containers.RepeatedScalarFieldContainer[float]
    control_period_s: float
    success_radius: float
    actor_depth: int
    actor_width: int
    critic_depth: int
    critic_width: int
    representation_dim: int
    energy: str
    activation: str
    layer_norm: bool
    residual: bool
    actuator_kind: _containers.RepeatedScalarFieldContainer[str]
    rest_action: _containers.RepeatedScalarFieldContainer[float]
    action_meaning: _containers.RepeatedScalarFieldContainer[str]
    max_action_change: _containers.RepeatedScalarFieldContainer[float]
    action_chunk: int
    critic: str
    normalize_observations: bool
    normalization_mean: _containers.RepeatedScalarFieldContainer[float]
    normalization_std: _containers.RepeatedScalarFieldContainer[float]
    seen_mean: _containers.RepeatedScalarFieldContainer[float]
    seen_std: _containers.RepeatedScalarFieldContainer[float]
    seen_low: _containers.RepeatedScalarFieldContainer[float]
    seen_high: _containers.RepeatedScalarFieldContainer[float]
    state_quaternions: _containers.RepeatedScalarFieldContainer[int]
    goal_quaternions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., environment: _Optional[str] = ..., state_dim: _Optional[int] = ..., goal_dim: _Optional[int] = ..., action_dim: _Optional[int] = ..., state_names: _Optional[_Iterable[str]] = ..., goal_names: _Optional[_Iterable[str]] = ..., action_names: _Optional[_Iterable[str]] = ..., action_low: _Optional[_Iterable[float]] = ..., action_high: _Optional[_Iterable[float]] = ..., control_period_s: _Optional[float] = ..., success_radius: _Optional[float] = ..., actor_depth: _Optional[int] = ..., actor_width: _Optional[int] = ..., critic_depth: _Optional[int] = ..., critic_width: _Optional[int] = ..., representation_dim: _Optional[int] = ..., energy: _Optional[str] = ..., activation: _Optional[str] = ..., layer_norm: _Optional[bool] = ..., residual: _Optional[bool] = ..., actuator_kind: _Optional[_Iterable[str]] = ..., rest_action: _Optional[_Iterable[float]] = ..., action_meaning: _Optional[_Iterable[str]] = ..., max_action_change: _Optional[_Iterable[float]] = ..., action_chunk: _Optional[int] = ..., critic: _Optional[str] = ..., normalize_observations: _Optional[bool] = ..., normalization_mean: _Optional[_Iterable[float]] = ..., normalization_std: _Optional[_Iterable[float]] = ..., seen_mean: _Optional[_Iterable[float]] = ..., seen_std: _Optional[_Iterable[float]] = ..., seen_low: _Optional[_Iterable[float]] = ..., seen_high: _Optional[_Iterable[float]] = ..., state_quaternions: _Optional[_Iterable[int]] = ..., goal_quaternions: _Optional[_Iterable[int]] = ...) -> None: ...
