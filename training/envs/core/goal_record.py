"""GoalRecord: how episodes did at their goals, counted step by step; training and the simulated robots share it."""

from typing import Any, NamedTuple

import jax.numpy as jnp

Rows = Any  # a jax.Array or a numpy array, [episodes]; the methods below work on both


class GoalRecord(NamedTuple):
    """What counts of each episode up to a step, [episodes] each.

    An episode counts until its first termination. It diverged if a state before that was NaN or infinite; then its goal
    counts as not reached.
    """

    alive: Rows  # bool, whether the next step counts
    steps_at_goal: Rows  # int32, counted control steps within the success radius
    first_arrival: Rows  # int32, the first of these steps, counted from 1; 0 if there was none
    diverged: Rows  # bool
    terminated: Rows  # bool, whether a counted step ended the episode
    steps: Rows  # int32, counted control steps

    @classmethod
    def begin(cls, zeros: Rows) -> "GoalRecord":
        """Return the record before the first step; `zeros: [episodes]` int32 gives its size and kind of array."""
        return cls(zeros == 0, zeros, zeros, zeros != 0, zeros != 0, zeros)

    def after(self, step: int | Rows, *, at_goal: Rows, done: Rows, finite: Rows) -> "GoalRecord":
        """Return the record after control step `step`, counted from 1.

        Args:
            step: its number.
            at_goal: [episodes] bool, whether the robot is within the success radius after the step.
            done: [episodes] bool, whether the step terminated the episode; it is counted.
            finite: [episodes] bool, whether the state after the step is finite; if not, the step is not counted.
        """
        counted = self.alive & finite
        arrived = counted & at_goal
        return GoalRecord(
            alive=counted & ~done,
            steps_at_goal=self.steps_at_goal + arrived,
            first_arrival=self.first_arrival + step * (arrived & (self.first_arrival == 0)),
            diverged=self.diverged | (self.alive & ~finite),
            terminated=self.terminated | (counted & done),
            steps=self.steps + counted,
        )

    @property
    def touched(self) -> Rows:
        """Whether the robot was at its goal in at least one counted step, bool [episodes]."""
        return (self.first_arrival > 0) & ~self.diverged

    @property
    def time_at_goal(self) -> Rows:
        """Counted control steps within the success radius, int32 [episodes]; 0 if the episode diverged."""
        return self.steps_at_goal * ~self.diverged

    def stay(self, episode_length: int) -> Rows:
        """Return the share of the time since the first arrival that was spent at the goal, [episodes], 0 to 1.

        That time goes up to `episode_length`, with the step of the arrival, so steps after a fall count as away from
        the goal. It is at least a tenth of the episode, so a late arrival counts little. 0 if it never arrived.
        """
        since = episode_length - self.first_arrival + 1
        return self.time_at_goal / jnp.maximum(since, episode_length / 10)
