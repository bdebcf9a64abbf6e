"""An environment from an MJCF file and a few facts: which joints are the state, which sites the goal.

Everything that the file and the facts get wrong is named when the environment is built: nothing compiled could say it.
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
from training.envs.core.errors import EnvError, told
from training.envs.core.goal_env import GoalEnv
from training.envs.custom import mjcf_elements


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """Goals drawn evenly between two corners, `low` and `high`: [goal_dim].

    Raises:
        EnvError: the corners are not finite, or not the lower and the upper one.
    """

    low: Sequence[float]
    high: Sequence[float]

    def __post_init__(self) -> None:
        try:
            low, high = np.asarray(self.low, float), np.asarray(self.high, float)
            sound = low.ndim == 1 and low.shape == high.shape and bool((low <= high).all())
            sound = sound and bool(np.isfinite([low, high]).all())
        except (TypeError, ValueError):  # of what is no number
            sound = False
        if not sound:
            raise EnvError(
                f"goals: low {self.low} must be as long as high {self.high} and nowhere above it; all finite"
            )

    def __call__(self, key: jax.Array) -> jax.Array:
        """Draw a goal [goal_dim]."""
        low, high = jnp.asarray(self.low, jnp.float32), jnp.asarray(self.high, jnp.float32)
        return jax.random.uniform(key, low.shape, minval=low, maxval=high)


class MjcfEnv(GoalEnv):
    """Bring sites of a robot to commanded positions.

    State: positions and velocities of the chosen joints, then the positions of the sites. Goal: where the sites shall
    be, along the chosen axes. The start is at rest. Subclass it for other starts (`sample_start`), goals that belong to
    a start (`sample_task`), or episodes that end early (`terminated`).

    Args:
        name: what it is registered as.
        file: the MJCF file; every actuator in it needs a `ctrlrange`.
        goal_sites: names of the sites that a goal is compared with.
        goal_axes: along which axes of the world, some of "xyz".
        goals: draws a goal [sites * axes] with a random key, in metres, site after site; a `Box` for instance.
        joints: names of the joints that the state holds; left out, all of them.
        keyframe: name of the keyframe to start from; left out, the positions that the file gives its bodies.
        start_noise: the chosen joints' positions start up to this far from there, in rad, m, or parts of a quaternion,
            and within their limits.
        success_radius: distance of all sites together to the goal that counts as reached, in metres.
        control_period_s: seconds between two actions, a whole number of the file's timesteps.
        episode_length: control steps after which an episode ends.
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
        )
        substeps = found.substeps(control_period_s)
        start = found.start(keyframe)
        noise = positive(start_noise, field="start_noise", where=str(file), usual=0.1, or_zero=True)
        try:
            super().__init__(env_spec, model, substeps=substeps, impl=impl)
        except NotImplementedError as error:
            raise EnvError(f"{file}: MuJoCo MJX cannot simulate it: {error}") from error
        self._positions = np.concatenate([joint.positions for joint in chosen])
        self._velocities = np.concatenate([joint.velocities for joint in chosen])
        self._quaternions = [joint.positions[-4:] for joint in chosen if len(joint.positions) >= 4]
        self._sites, self._axes = np.array(sites), np.array(axes)
        self._start, self._goals = jnp.asarray(start, jnp.float32), goals
        self._start_low, self._start_high = _around(start[self._positions], chosen, noise=noise)
        self._marked = found.place(sites[0], start)
        _require_goals(goals, goal_names, sites=len(sites), axes=goal_axes, file=str(file))

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """At rest, the chosen joints a little off."""
        noise = jax.random.uniform(key, self._positions.shape, minval=self._start_low, maxval=self._start_high)
        qpos = self._start.at[self._positions].add(noise)
        for quaternion in self._quaternions:
            qpos = qpos.at[quaternion].divide(jnp.linalg.norm(qpos[quaternion]))
        return qpos, jnp.zeros(self.model.nv)

    def sample_goal(self, key: jax.Array) -> jax.Array:
        """As the `goals` given draws them."""
        return self._goals(key)

    def sense(self, data: mjx.Data) -> jax.Array:
        """Positions, velocities, sites. Where the sites are follows from `qpos`: after a step, `data` does not know."""
        placed = mjx.kinematics(self._mjx_model, data)
        sites = placed.site_xpos[self._sites[:, None], self._axes].ravel()
        return jnp.concatenate([data.qpos[self._positions], data.qvel[self._velocities], sites])

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        """Where the sites are."""
        return state[..., -self.goal_size :]

    def marker(self, goal: np.ndarray) -> np.ndarray:
        """Where the goal of the first site is; along an axis that goals say nothing of, where that site starts."""
        place = self._marked.copy()
        place[self._axes] = goal[: len(self._axes)]
        return place


def _around(start: np.ndarray, joints: Sequence[mjcf_elements.Joint], *, noise: float) -> tuple[jax.Array, jax.Array]:
    """How far below and above `start` the joints' positions may be drawn: the noise, but no further than their limits.

    A start that is itself a little outside, as a rounded keyframe may be, only goes inwards.
    """
    low, high = (np.concatenate([getattr(joint, end) for joint in joints]) for end in ("low", "high"))
    below, above = np.maximum(-noise, np.minimum(low - start, 0)), np.minimum(noise, np.maximum(high - start, 0))
    return jnp.asarray(below, jnp.float32), jnp.asarray(above, jnp.float32)


def _require_goals(goals: Any, names: Sequence[str], *, sites: int, axes: str, file: str) -> None:
    """Refuse what does not draw a goal [goal_dim] of floats with a random key."""
    works = f"Box(low={(0.0,) * len(names)}, high={(0.1,) * len(names)})"
    if not callable(goals):
        raise EnvError(f"{file}: goals must be a function of a random key, such as {works}, not {goals!r:.80}")
    try:
        drawn = jax.eval_shape(goals, jax.random.key(0))
    except Exception as error:  # whatever the function does
        raise EnvError(f"{file}: goals cannot be drawn: {told(error)}") from error
    kind = f"one of {drawn.dtype}" if isinstance(drawn, jax.ShapeDtypeStruct) else f"a {type(drawn).__name__}"
    if not (isinstance(drawn, jax.ShapeDtypeStruct) and jnp.issubdtype(drawn.dtype, jnp.floating)):
        raise EnvError(f"{file}: goals must draw an array of floats, as {works} does, not {kind}")
    if drawn.shape != (len(names),):
        raise EnvError(
            f"{file}: goals draws {list(drawn.shape)} values, but {sites} sites along {axes} are {len(names)}: "
            f"{', '.join(names)}"
        )
