"""Why a server refused or failed a request, in one word: the reasons that policy.proto documents at `Failure`."""

METADATA_KEY = "kilolayer-reason"  # in the trailing metadata of a call that fails

QUEUE_FULL = "queue_full"
QUEUE_AGE = "queue_age"
DEADLINE_TOO_SHORT = "deadline_too_short"
DEADLINE_EXCEEDED = "deadline_exceeded"
DRAINING = "draining"
NOT_READY = "not_ready"
UNKNOWN_POLICY = "unknown_policy"
UNKNOWN_VERSION = "unknown_version"
INVALID_REQUEST = "invalid_request"
NON_FINITE_ACTION = "non_finite_action"
COMPUTATION_FAILED = "computation_failed"
INTERNAL = "internal"
