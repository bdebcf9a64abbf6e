from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import Any as _Any, ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PolicyStatus(_message.Message):
    __slots__ = ("policy", "live_version", "previous_versions", "loaded_versions", "following", "wanted", "refused", "canary", "shadow", "rolled_back_versions")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    LIVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    LOADED_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    FOLLOWING_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    ROLLED_BACK_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    policy: str
    live_version: str
    previous_versions: _containers.RepeatedScalarFieldContainer[str]
    loaded_versions: _containers.RepeatedScalarFieldContainer[str]
    following: bool
    wanted: str
    refused: _containers.RepeatedCompositeFieldContainer[RefusedVersion]
    canary: CanaryStatus
    shadow: ShadowStatus
    rolled_back_versions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, policy: _Optional[str] = ..., live_version: _Optional[str] = ..., previous_versions: _Optional[_Iterable[str]] = ..., loaded_versions: _Optional[_Iterable[str]] = ..., following: _Optional[bool] = ..., wanted: _Optional[str] = ..., refused: _Optional[_Iterable[_Union[RefusedVersion, _Mapping[str, _Any]]]] = ..., canary: _Optional[_Union[CanaryStatus, _Mapping[str, _Any]]] = ..., shadow: _Optional[_Union[ShadowStatus, _Mapping[str, _Any]]] = ..., rolled_back_versions: _Optional[_Iterable[str]] = ...) -> None: ...

class CanaryRule(_message.Message):
    __slots__ = ("false_promotion_rate", "false_rollback_rate", "margin", "min_episodes")
    FALSE_PROMOTION_RATE_FIELD_NUMBER: _ClassVar[int]
    FALSE_ROLLBACK_RATE_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    MIN_EPISODES_FIELD_NUMBER: _ClassVar[int]
    false_promotion_rate: float
    false_rollback_rate: float
    margin: float
    min_episodes: int
    def __init__(self, false_promotion_rate: _Optional[float] = ..., false_rollback_rate: _Optional[float] = ..., margin: _Optional[float] = ..., min_episodes: _Optional[int] = ...) -> None: ...

class CanaryStatus(_message.Message):
    __slots__ = ("version", "share", "rule", "live_episodes", "candidate_episodes", "better_evidence", "worse_evidence", "loading")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    LIVE_EPISODES_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_EPISODES_FIELD_NUMBER: _ClassVar[int]
    BETTER_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    WORSE_EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    version: str
    share: float
    rule: CanaryRule
    live_episodes: int
    candidate_episodes: int
    better_evidence: float
    worse_evidence: float
    loading: bool
    def __init__(self, version: _Optional[str] = ..., share: _Optional[float] = ..., rule: _Optional[_Union[CanaryRule, _Mapping[str, _Any]]] = ..., live_episodes: _Optional[int] = ..., candidate_episodes: _Optional[int] = ..., better_evidence: _Optional[float] = ..., worse_evidence: _Optional[float] = ..., loading: _Optional[bool] = ...) -> None: ...

class ShadowStatus(_message.Message):
    __slots__ = ("version", "share", "loading")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    version: str
    share: float
    loading: bool
    def __init__(self, version: _Optional[str] = ..., share: _Optional[float] = ..., loading: _Optional[bool] = ...) -> None: ...

class RefusedVersion(_message.Message):
    __slots__ = ("version", "reason", "detail")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    version: str
    reason: str
    detail: str
    def __init__(self, version: _Optional[str] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: str
    def __init__(self, policy: _Optional[str] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("policies",)
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[PolicyStatus]
    def __init__(self, policies: _Optional[_Iterable[_Union[PolicyStatus, _Mapping[str, _Any]]]] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("policy", "version")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    policy: str
    version: str
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class LoadResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyStatus
    def __init__(self, policy: _Optional[_Union[PolicyStatus, _Mapping[str, _Any]]] = ...) -> None: ...

class UnloadRequest(_message.Message):
    __slots__ = ("policy", "version")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    policy: str
    version: str
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class UnloadResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyStatus
    def __init__(self, policy: _Optional[_Union[PolicyStatus, _Mapping[str, _Any]]] = ...) -> None: ...

class SwitchRequest(_message.Message):
    __slots__ = ("policy", "version")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    policy: str
    version: str
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class SwitchResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyStatus
    def __init__(self, policy: _Optional[_Union[PolicyStatus, _Mapping[str, _Any]]] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: str
    def __init__(self, policy: _Optional[str] = ...) -> None: ...

class RollbackResponse(_message.Message):
    __slots__ = ("policy", "rolled_back_version", "ended_canary")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ROLLED_BACK_VERSION_FIELD_NUMBER: _ClassVar[int]
    ENDED_CANARY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyStatus
    rolled_back_version: str
    ended_canary: bool
    def __init__(self, policy: _Optional[_Union[PolicyStatus, _Mapping[str, _Any]]] = ..., rolled_back_version: _Optional[str] = ..., ended_canary: _Optional[bool] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("policy", "off")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    OFF_FIELD_NUMBER: _ClassVar[int]
    policy: str
    off: bool
    def __init__(self, policy: _Optional[str] = ..., off: _Optional[bool] = ...) -> None: ...

class FollowResponse(_message.Message):
    __slots__ = ("policy", "next_version")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    NEXT_VERSION_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyStatus
    next_version: str
    def __init__(self, policy: _Optional[_Union[PolicyStatus, _Mapping[str, _Any]]] = ..., next_version: _Optional[str] = ...) -> None: ...

class CanaryRequest(_message.Message):
    __slots__ = ("policy", "version", "share", "rule", "off")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    OFF_FIELD_NUMBER: _ClassVar[int]
    policy: str
    version: str
    share: float
    rule: CanaryRule
    off: bool
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[str] = ..., share: _Optional[float] = ..., rule: _Optional[_Union[CanaryRule, _Mapping[str, _Any]]] = ..., off: _Optional[bool] = ...) -> None: ...

class CanaryResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyStatus
    def __init__(self, policy: _Optional[_Union[PolicyStatus, _Mapping[str, _Any]]] = ...) -> None: ...

class ShadowRequest(_message.Message):
    __slots__ = ("policy", "version", "share", "off")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    OFF_FIELD_NUMBER: _ClassVar[int]
    policy: str
    version: str
    share: float
    off: bool
    def __init__(self, policy: _Optional[str] = ..., version: _Optional[str] = ..., share: _Optional[float] = ..., off: _Optional[bool] = ...) -> None: ...

class ShadowResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: PolicyStatus
    def __init__(self, policy: _Optional[_Union[PolicyStatus, _Mapping[str, _Any]]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
