"""What a caller of the Python client reads: the server says what happened, and the client adds one advice."""

import ast
from pathlib import Path

import grpc
import pytest

import serving
from kilolayer._channel import Endpoint
from kilolayer._internal.blocks_pb2 import ActRequestBlocks
from serving import errors
from serving.errors import DrainingError, Reason, ServingError, Status, UnexpectedError

_ADVICE = (
    *("next observation", "allow more time", "try again", "again later", "wait until", "bring the robot"),
    *("hold a safe", "fewer rows", "raise --", "use more", "read replies", "check the", "send "),
)
_NOT_OF_OUR_CLIENT = {"admin_actions.py", "admin_service.py", "deployment.py"}  # the command adds nothing


def server_messages() -> list[tuple[str, str]]:
    """Return the file and the text of every message that the Python client may receive."""
    found: list[tuple[str, str]] = []
    for path in Path(serving.__path__[0]).rglob("*.py"):
        if path.name in _NOT_OF_OUR_CLIENT or path.parent.name == "open_inference":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and _is_error(node.func.id):
                parts = [part for argument in node.args for part in ast.walk(argument)]
                texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
                found.append((path.name, "".join(texts)))
    return found


def _is_error(name: str) -> bool:
    """Return whether a ServingError has this name, other than one of the administrator's."""
    kind = getattr(errors, name, None)
    return isinstance(kind, type) and issubclass(kind, ServingError) and kind is not errors.DeploymentError


def test_the_messages_of_the_server_give_no_advice_that_the_client_gives() -> None:
    messages = server_messages()
    assert len(messages) > 20
    told_to_send = "NaN or infinity; send finite values"  # what is allowed, which the client cannot know
    assert [each for each in messages if told_to_send not in each[1] and any(word in each[1] for word in _ADVICE)] == []
    assert not any(word in str(DrainingError()) for word in _ADVICE)


@pytest.mark.parametrize(
    ("status", "reason", "text", "advice"),
    [
        ("RESOURCE_EXHAUSTED", "queue_full", "the queue is full", "Send the next observation, not this one again; send"
         " fewer rows at a time, or raise --max-queue-rows"),
        ("RESOURCE_EXHAUSTED", "queue_age", "the queue is too slow", "Send the next observation, not this one again;"
         " send fewer requests at a time, or use more servers"),
        ("RESOURCE_EXHAUSTED", "deadline_too_short", "the answer would take up to 3 s", "Send the next observation,"
         " with more time or fewer rows"),
        ("RESOURCE_EXHAUSTED", "memory_limit", "the server holds 9 MB", "Receive the replies of earlier requests before"
         " sending more, and send fewer rows at a time"),
        ("RESOURCE_EXHAUSTED", "rate_limit", "the token made too many calls", "Make calls less often, or let the"
         " server's operator raise the token's rate"),
        ("DEADLINE_EXCEEDED", "deadline_exceeded", "the deadline passed before the request arrived", "Send the next"
         " observation, or allow more time"),
        ("UNAVAILABLE", "draining", str(DrainingError()), "Send the next observation to another server, or in a"
         " moment"),
        ("UNAVAILABLE", "not_ready", "the server is still compiling its policies", "Use wait_until_ready, or send the"
         " next observation in a moment"),
        ("NOT_FOUND", "unknown_policy", "there is no policy 'x'; there are: y", "list_policies() gives the names and"
         " versions"),
        ("NOT_FOUND", "unknown_version", "policy y has no version '1'", "list_policies() gives the names and versions"),
        ("INVALID_ARGUMENT", "invalid_request", "state must have 4 values", "describe() gives the sizes and the row"
         " limit"),
        ("INVALID_ARGUMENT", "out_of_range", "x of row 0 is 99", "Check the sensors and their units"),
        ("INVALID_ARGUMENT", "extreme_input", "the policy gave NaN", "Check the sensors and their units"),
        ("FAILED_PRECONDITION", "no_critic", "y has no critic", "describe().critic says whether the policy has a"
         " critic"),
        ("INTERNAL", "non_finite_action", "the policy gave NaN or infinity", "Bring the robot to rest"),
        ("INTERNAL", "computation_failed", "the policy could not be computed", "Hold a safe action, then send the next"
         " observation"),
        ("INTERNAL", "computation_timeout", "it was given up; the server stops", "Bring the robot to rest"),
        ("INTERNAL", "internal", str(UnexpectedError()), "Hold a safe action, then send the next observation"),
    ],
)  # fmt: skip
def test_the_advice_for_each_reason(status: str, reason: str, text: str, advice: str) -> None:
    error = Endpoint("localhost:1", timeout_s=1).failure(
        "Act",
        grpc.StatusCode[status],
        details=text,
        reason=reason,
        request=ActRequestBlocks(),
        timeout_s=0.5,
    )
    assert str(error) == f"Act at localhost:1 failed ({status}, timeout 0.5 s): {text}. {advice}."
    assert error.reason == reason
    assert Status[status]


def test_every_reason_of_a_request_has_its_advice_above() -> None:
    marks = test_the_advice_for_each_reason.pytestmark  # type: ignore[attr-defined]
    changes = {Reason.VERSION_REFUSED, Reason.NO_PREVIOUS, Reason.VERSION_IS_LIVE, Reason.FIXED_VERSION, Reason.BUSY}
    about_tokens = {"unauthenticated", "permission_denied"}  # the advice depends on the client's token
    assert {each.value for each in set(Reason) - changes} <= {case[1] for case in marks[0].args[1]} | about_tokens


@pytest.mark.parametrize("reason", ["not_ready", "draining"])
def test_a_report_is_sent_again(reason: str) -> None:
    error = Endpoint("localhost:1", timeout_s=1).failure(
        "Report",
        grpc.StatusCode.UNAVAILABLE,
        details="the server cannot count reports now",
        reason=reason,
        request=ActRequestBlocks(),
        timeout_s=0.5,
    )
    assert str(error).endswith(": the server cannot count reports now. Send the report again later.")
