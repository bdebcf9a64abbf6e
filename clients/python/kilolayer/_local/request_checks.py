"""The checks of a server, for a policy without one: sizes, numbers of rows, NaN, the range of actions."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from kilolayer._arguments import ActArguments, ScoreArguments


class RefusedError(Exception):
    """A refused call: the name of its gRPC status, the reason in one word, and what happened."""

    def __init__(self, status: str, reason: str, happened: str) -> None:
        super().__init__(status, reason, happened)
        self.status = status
        self.reason = reason
        self.happened = happened


@dataclasses.dataclass(frozen=True)
class RequestChecks:
    """The checks for one policy. Each method returns the rows to compute, or raises RefusedError."""

    name: str  # of the policy
    state_names: tuple[str, ...]
    goal_dim: int
    action_dim: int
    action_chunk: int
    max_rows: int

    def act(self, arguments: ActArguments) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the states [rows, state_dim] and the goals [rows, goal_dim] of an `act`."""
        state, goal = self._states_and_goals(arguments.states, arguments.goals, rows=arguments.rows)
        _refuse_not_finite(state=state, goal=goal)
        rows, candidates = len(state), arguments.best_of
        if candidates is not None and candidates > self.max_rows // rows:
            raise _invalid(
                f"candidates must be from 1 to {self.max_rows // rows} for {rows} rows, got {candidates}: a request may"
                f" have at most {self.max_rows} rows, and each candidate counts as one"
            )
        return state, _for_every_row(goal, rows)

    def score(self, arguments: ScoreArguments) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Return the states [rows, state_dim], the actions [rows, chunk_dim] and the goals of a `score`."""
        state = self._states(arguments.states, arguments.rows)
        chunk_dim = self.action_chunk * self.action_dim
        action = self._matching("action", arguments.actions, chunk_dim, rows=len(state), broadcasts=False)
        goal = self._matching("goal", arguments.goals, self.goal_dim, rows=len(state), broadcasts=True)
        largest = np.abs(action).max()
        if largest > 1:
            raise _invalid(f"action must be within [-1, 1], got a value of magnitude {largest:.9g}")
        _refuse_not_finite(state=state, action=action, goal=goal)
        return state, action, _for_every_row(goal, len(state))

    def _states_and_goals(
        self, states: NDArray[np.float32], goals: NDArray[np.float32], *, rows: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        state = self._states(states, rows)
        return state, self._matching("goal", goals, self.goal_dim, rows=len(state), broadcasts=True)

    def _states(self, states: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
        """Return the states [rows, state_dim]."""
        dim = len(self.state_names)
        count, rest = divmod(states.size, dim)
        if rest or not count:
            names = ", ".join((*self.state_names[:2], "...")[:dim])
            raise _invalid(
                f"each row of state needs {dim} values of {self.name} ({names}), got {states.size} values in all"
            )
        if rows != count:
            raise _invalid(f"state must hold {rows * dim} values for {rows} rows of {self.name}, got {states.size}")
        if count > self.max_rows:
            raise _invalid(f"a request may have at most {self.max_rows} rows, got {count}")
        return states.reshape(count, dim)

    def _matching(
        self, name: str, values: NDArray[np.float32], dim: int, *, rows: int, broadcasts: bool
    ) -> NDArray[np.float32]:
        """Return a block [rows, dim]; if `broadcasts`, a block [1, dim] for all rows is allowed too."""
        if values.size == rows * dim or (broadcasts and values.size == dim):
            return values.reshape(-1, dim)
        every = f" values, or {rows * dim} for {rows} rows," if rows > 1 else " values"
        wanted = f"{dim}{every}" if broadcasts or rows == 1 else f"{rows * dim} values for {rows} rows"
        chunks = f", {self.action_chunk} actions of {self.action_dim} values for each row" if name == "action" else ""
        chunks = chunks if self.action_chunk > 1 else ""
        raise _invalid(f"{name} must hold {wanted} of {self.name}{chunks}, got {values.size}")


def _refuse_not_finite(**blocks: NDArray[np.float32]) -> None:
    for name, block in blocks.items():
        is_finite = np.isfinite(block)
        if not is_finite.all():
            row = int(np.argmin(is_finite.all(axis=1)))
            raise _invalid(f"{name} of row {row} (the first is 0) has NaN or infinity; send finite values")


def _for_every_row(goal: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    return goal if len(goal) == rows else np.repeat(goal, rows, axis=0)


def _invalid(happened: str) -> RefusedError:
    return RefusedError("INVALID_ARGUMENT", "invalid_request", happened)
