"""A light client for goal-reaching policies served by Kilolayer: numpy in, actions out, a deadline on every call."""

from kilolayer.aio import AsyncPolicyClient
from kilolayer.client import PolicyClient
from kilolayer.errors import (
    AccessDenied,
    BadReply,
    ClientClosed,
    DeadlineExceeded,
    InvalidRequest,
    KilolayerError,
    Overloaded,
    PolicyNotFound,
    RequestError,
    ServerError,
    ServerFailure,
    Unavailable,
)
from kilolayer.replies import Action, PolicyDescription, PolicyListing, Score
from kilolayer.stream import PendingAction, PolicyStream

__all__ = [
    "AccessDenied",
    "Action",
    "AsyncPolicyClient",
    "BadReply",
    "ClientClosed",
    "DeadlineExceeded",
    "InvalidRequest",
    "KilolayerError",
    "Overloaded",
    "PendingAction",
    "PolicyClient",
    "PolicyDescription",
    "PolicyListing",
    "PolicyNotFound",
    "PolicyStream",
    "RequestError",
    "Score",
    "ServerError",
    "ServerFailure",
    "Unavailable",
]
