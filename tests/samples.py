"""Small things that many tests start from."""

from typing import Any

from policy.spec import PolicySpec

_FIELDS: dict[str, Any] = {
    "name": "point_u_maze",
    "environment": "point_u_maze",
    "state_names": ("x [m]", "y [m]", "vx [m/s]", "vy [m/s]"),
    "goal_names": ("x [m]", "y [m]"),
    "action_names": ("force x [N]", "force y [N]"),
    "action_low": (-4.0, -4.0),
    "action_high": (4.0, 4.0),
    "control_period_s": 0.08,
    "success_radius": 0.3,
    "actor_depth": 4,
    "actor_width": 16,
    "critic_depth": 4,
    "critic_width": 16,
    "representation_dim": 8,
}
WITHOUT_CRITIC: dict[str, Any] = {"critic": "none", "critic_depth": 0, "critic_width": 0, "representation_dim": 0}


def policy_spec(**changes: Any) -> PolicySpec:
    """A valid specification, of a small policy for a point maze unless changed."""
    return PolicySpec(**(_FIELDS | changes))
