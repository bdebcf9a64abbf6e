"""A light client for goal-reaching policies served by Kilolayer: numpy in, actions out, a deadline on every call."""

from kilolayer._async_client import AsyncPolicyClient
from kilolayer._client import PolicyClient
from kilolayer._local.local_policy import LocalPolicy
from kilolayer._responses import Action, PolicyDescription, PolicyListing, ReportStatus, Score
from kilolayer._stream import PendingAction, PolicyStream
from kilolayer._tls import Tls
from kilolayer.errors import (
    AccessDenied,
    BadReply,
    ClientClosed,
    DeadlineExceeded,
    InvalidExport,
    InvalidRequest,
    KilolayerError,
    NotSupported,
    Overloaded,
    PolicyNotFound,
    RequestError,
    ServerError,
    ServerFailure,
    Unavailable,
)

__all__ = [
    "AccessDenied",
    "Action",
    "AsyncPolicyClient",
    "BadReply",
    "ClientClosed",
    "DeadlineExceeded",
    "InvalidExport",
    "InvalidRequest",
    "KilolayerError",
    "LocalPolicy",
    "NotSupported",
    "Overloaded",
    "PendingAction",
    "PolicyClient",
    "PolicyDescription",
    "PolicyListing",
    "PolicyNotFound",
    "PolicyStream",
    "ReportStatus",
    "RequestError",
    "Score",
    "ServerError",
    "ServerFailure",
    "Tls",
    "Unavailable",
]
