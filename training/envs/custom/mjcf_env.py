"""MjcfEnv: an environment from an MJCF file and a few arguments, such as which sites a goal is compared with.

Mistakes in the file and the arguments are reported when the environment is built: compiled code cannot report them.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mujoco import mjx

from training.envs.core.env_spec import EnvSpec, positive
from training.envs.core.errors import EnvError, one_line
from training.envs.core.goal_env import GoalEnv
from training.envs.custom import mjcf_elements


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """Draws goals uniformly between two corners, `low` and `high`, both [goal_dim].

    Raises:
        EnvError: the corners have different lengths, are not finite, or `low` is above `high`.
    """

    low: Sequence[float]
    high: Sequence[float]

    def __post_init__(self) -> None:
        try:
            low, high = np.asarray(self.low, float), np.asarray(self.high, float)
            sound = low.ndim == 1 and low.shape == high.shape and bool((low <= high).all())
            sound = sound and bool(np.isfinite([low, high]).all())
        except (TypeError, ValueError):  # for entries that are not numbers
            sound = False
        if not sound:
            raise EnvError(
                f"goals: low and high must be finite, of one length, and low not above high, got {self.low} and "
                f"{self.high}"
            )

    def __call__(self, key: jax.Array) -> jax.Array:
        """Draw a goal [goal_dim]."""
        low, high = jnp.asarray(self.low, jnp.float32), jnp.asarray(self.high, jnp.float32)
        return jax.random.uniform(key, low.shape, minval=low, maxval=high)


class MjcfEnv(GoalEnv):
    """Bring sites of a robot to commanded positions.

    State: positions and velocities of the chosen joints, then the positions of the sites. Goal: the positions of the
    sites along the chosen axes. The robot starts at rest. Subclass it for other starts (`sample_start`), goals that
    depend on the start (`sample_task`), or episodes that end early (`terminated`).

    Args:
        name: the name it is registered under.
        file: the MJCF file; every actuator in it needs a `ctrlrange`.
        goal_sites: names of the sites that a goal is compared with.
        goal_axes: the world axes along which they are compared, some of "xyz".
        goals: draws a goal [sites * axes] with a random key, in meters, site after site; for example a `Box`.
        joints: names of the joints in the state; by default, all of them.
        keyframe: name of the keyframe to start from; by default, the positions of the bodies in the file.
        start_noise: the chosen joints start up to this far from there, in rad, m, or quaternion components, and within
            their limits.
        success_radius: distance of all sites together from the goal at which it counts as reached, in meters.
        control_period_s: seconds between two actions, an integer multiple of the file's timestep.
        episode_length: control steps after which an episode ends.
        actuator_kind: what each action drives, one word per actuator; by default, read from the file.
        rest_action: the action that leaves the robot at rest, one number in [-1, 1] per actuator; by default, the
            control of `keyframe`, else of the file's first keyframe, else 0, clipped to the control ranges.
        action_meaning: absolute or increment, one word per actuator; by default, absolute.
        max_action_change: largest change of an action per control period, one number per actuator; by default, no
            limit. It is stored with the policy and not applied in training.
        impl: the MJX implementation, "jax" or "warp".

    Raises:
        EnvError: the file cannot be loaded, or lacks what the arguments name; the message names file and element.
    """

    def __init__(
        self,
        name: str,
        file: str | Path,
        *,
        goal_sites: str | Sequence[str],
        goal_axes: str = "xyz",
        goals: Callable[[jax.Array], jax.Array],
        joints: str | Sequence[str] | None = None,
        keyframe: str | None = None,
        start_noise: float = 0.0,
        success_radius: float,
        control_period_s: float,
        episode_length: int,
        actuator_kind: Sequence[str] = (),
        rest_action: Sequence[float] = (),
        action_meaning: Sequence[str] = (),
        max_action_change: Sequence[float] = (),
        impl: str = "jax",
    ) -> None:
        model = mjcf_elements.load(Path(file))
        found = mjcf_elements.Elements(str(file), model)
        chosen = [mjcf_elements.Joint(model, index) for index in found.joints(joints)]
        sites, axes = found.sites(goal_sites), found.axes(goal_axes)
        goal_names = tuple(f"{model.site(site).name} {axis} [m]" for site in sites for axis in goal_axes)
        env_spec = EnvSpec(
            name=name,
            state_names=(
                *(label for joint in chosen for label in joint.position_names),
                *(label for joint in chosen for label in joint.velocity_names),
                *goal_names,
            ),
            goal_names=goal_names,
            action_names=found.actuators(),
            success_radius=success_radius,
            episode_length=episode_length,
            source=str(file),
            actuator_kind=_tuple(actuator_kind),
            rest_action=_tuple(rest_action),
            action_meaning=_tuple(action_meaning),
            max_action_change=_tuple(max_action_change),
            state_quaternions=mjcf_elements.quaternions(chosen),
        )
        substeps = found.substeps(control_period_s)
        start = found.start(keyframe)
        noise = positive(start_noise, field="start_noise", where=str(file), usual=0.1, or_zero=True)
        try:
            super().__init__(env_spec, model, substeps=substeps, impl=impl)
        except NotImplementedError as error:
            raise EnvError(f"{file}: MuJoCo MJX cannot simulate it: {error}") from error
        self._rest_control = found.rest_control(keyframe)
        self._positions = np.concatenate([joint.positions for joint in chosen])
        self._velocities = np.concatenate([joint.velocities for joint in chosen])
        self._quaternions = [joint.positions[-4:] for joint in chosen if len(joint.positions) >= 4]
        self._sites, self._axes = np.array(sites), np.array(axes)
        self._start, self._goals = jnp.asarray(start, jnp.float32), goals
        self._start_low, self._start_high = _around(start[self._positions], chosen, noise=noise)
        self._marked = found.place(sites[0], start)
        _require_goals(goals, goal_names, sites=len(sites), axes=goal_axes, file=str(file))

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """At rest, with noise on the chosen joints."""
        noise = jax.random.uniform(key, self._positions.shape, minval=self._start_low, maxval=self._start_high)
        qpos = self._start.at[self._positions].add(noise)
        for quaternion in self._quaternions:
            qpos = qpos.at[quaternion].divide(jnp.linalg.norm(qpos[quaternion]))
        return qpos, jnp.zeros(self.model.nv)

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """Draw a goal with `goals`."""
        return self._goals(key)

    def sense(self, data: mjx.Data) -> jax.Array:
        """Positions, velocities, sites. The sites are computed from `qpos`, since after a step, `data` has old ones."""
        placed = mjx.kinematics(self._mjx_model, data)
        sites = placed.site_xpos[self._sites[:, None], self._axes].ravel()
        return jnp.concatenate([data.qpos[self._positions], data.qvel[self._velocities], sites])

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """The positions of the sites."""
        return state[..., -self.goal_size :]

    def marker(self, goal: np.ndarray) -> np.ndarray:
        """The goal of the first site; along axes that goals do not have, the site's position at the start."""
        place = self._marked.copy()
        place[self._axes] = goal[: len(self._axes)]
        return place


def _tuple(values: Any) -> Any:
    """Return a sequence as a tuple, and anything else as it is, for `EnvSpec` to refuse by name."""
    return tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else values


def _around(start: np.ndarray, joints: Sequence[mjcf_elements.Joint], *, noise: float) -> tuple[jax.Array, jax.Array]:
    """Return how far below and above `start` the joints may start: the noise, cut at their limits.

    From a start slightly outside a limit, as in a rounded keyframe, the noise only goes inward.
    """
    low, high = (np.concatenate([getattr(joint, end) for joint in joints]) for end in ("low", "high"))
    below, above = np.maximum(-noise, np.minimum(low - start, 0)), np.minimum(noise, np.maximum(high - start, 0))
    return jnp.asarray(below, jnp.float32), jnp.asarray(above, jnp.float32)


def _require_goals(goals: Any, names: Sequence[str], *, sites: int, axes: str, file: str) -> None:
    """Refuse `goals` that does not draw floats [goal_dim] with a random key."""
    works = f"Box(low={(0.0,) * len(names)}, high={(0.1,) * len(names)})"
    if not callable(goals):
        raise EnvError(f"{file}: goals must be a function of a random key, such as {works}, got {goals!r:.80}")
    try:
        drawn = jax.eval_shape(goals, jax.random.key(0))
    except Exception as error:  # the user's function may raise anything
        raise EnvError(f"{file}: drawing from goals failed: {one_line(error)}") from error
    kind = f"an array of {drawn.dtype}" if isinstance(drawn, jax.ShapeDtypeStruct) else f"a {type(drawn).__name__}"
    if not (isinstance(drawn, jax.ShapeDtypeStruct) and jnp.issubdtype(drawn.dtype, jnp.floating)):
        raise EnvError(f"{file}: goals must draw an array of floats, as {works} does, got {kind}")
    if drawn.shape != (len(names),):
        raise EnvError(
            f"{file}: goals must draw an array of shape [{len(names)}] ({', '.join(names)}; sites: {sites}, axes: "
            f"{axes}), got {list(drawn.shape)}"
        )
