"""What a subcommand of kilolayer-policy returns, and the errors that it raises."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Result:
    """What a subcommand found or did, for people and for programs.

    Args:
        lines: the text for people.
        facts: the same and more, as JSON values. `--json` prints them as one object, with null for NaN and infinity.
        exit_code: of the process: 0, 1 if a policy is damaged, or 3 if `diff` found a larger difference.
    """

    lines: Sequence[str]
    facts: Mapping[str, Any]
    exit_code: int = 0


class UsageError(Exception):
    """A wrong command line: exit code 2. The message is one line, and says what is allowed."""


class CommandError(Exception):
    """The work failed: exit code 1. The message is one line."""
