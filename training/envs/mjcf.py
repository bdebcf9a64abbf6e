"""An environment from an MJCF file and a few facts: which joints are the state, which sites the goal.

Everything that the file and the facts get wrong is named when the environment is built: nothing compiled could say it.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import mjx

from training.envs.base import EnvFacts, GoalEnv
from training.envs.registry import EnvError, nearest_first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """Goals drawn evenly between two corners, `low` and `high`: [goal_dim].

    Raises:
        EnvError: the corners are not finite, or not the lower and the upper one.
    """

    low: Sequence[float]
    high: Sequence[float]

    def __post_init__(self) -> None:
        ordered = len(self.low) == len(self.high) and all(map(operator.le, self.low, self.high))
        if not (ordered and all(map(math.isfinite, (*self.low, *self.high)))):
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
        start_noise: the chosen joints' positions start up to this far from there, in rad, m, or parts of a quaternion.
        success_radius: distance of all sites together to the goal that counts as reached, in metres.
        control_period_s: seconds between two actions, a whole number of the file's timesteps.
        episode_length: control steps after which an episode ends.
        impl: the MJX implementation, "jax" or "warp".

    Raises:
        EnvError: the file cannot be loaded, or does not hold what the facts name; the message names file and element.
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
        model = _load(Path(file))
        found = _Elements(str(file), model)
        chosen = [_Joint(model, index) for index in found.joints(joints)]
        sites, axes = found.sites(goal_sites), found.axes(goal_axes)
        goal_names = tuple(f"{model.site(site).name} {axis} [m]" for site in sites for axis in goal_axes)
        facts = EnvFacts(
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
        try:
            super().__init__(facts, model, substeps=substeps, impl=impl)
        except NotImplementedError as error:
            raise EnvError(f"{file}: MuJoCo MJX cannot simulate it: {error}") from error
        self._positions = np.concatenate([joint.positions for joint in chosen])
        self._velocities = np.concatenate([joint.velocities for joint in chosen])
        self._quaternions = [joint.positions[-4:] for joint in chosen if len(joint.positions) >= 4]
        self._sites, self._axes = np.array(sites), np.array(axes)
        self._start, self._start_noise, self._goals = jnp.asarray(start, jnp.float32), start_noise, goals
        drawn = jax.eval_shape(goals, jax.random.key(0)).shape
        if drawn != (self.goal_size,):
            raise EnvError(
                f"{file}: goals draws {list(drawn)} values, but {len(sites)} sites along {goal_axes} are "
                f"{self.goal_size}: {', '.join(goal_names)}"
            )

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """At rest, the chosen joints a little off."""
        noise = jax.random.uniform(key, self._positions.shape, minval=-self._start_noise, maxval=self._start_noise)
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


class _Joint:
    """Where a joint's numbers lie in `qpos` and `qvel`, and what they are called."""

    def __init__(self, model: mujoco.MjModel, index: int) -> None:
        layout = _LAYOUTS[int(model.jnt_type[index])]
        self.name = model.joint(index).name or f"joint {index}"
        self.position_names = tuple(f"{self.name}{label}" for label in layout.positions)
        self.velocity_names = tuple(f"{self.name}{label}" for label in layout.velocities)
        self.positions = model.jnt_qposadr[index] + np.arange(len(layout.positions))
        self.velocities = model.jnt_dofadr[index] + np.arange(len(layout.velocities))


class _Layout(NamedTuple):
    """What a joint of some type has, as it follows the joint's name."""

    positions: tuple[str, ...]
    velocities: tuple[str, ...]


_QUATERNION = tuple(f" quaternion {part}" for part in "wxyz")
_TURNING = tuple(f" w{axis} [rad/s]" for axis in "xyz")
_LAYOUTS = {
    int(mujoco.mjtJoint.mjJNT_HINGE): _Layout((" [rad]",), (" rate [rad/s]",)),
    int(mujoco.mjtJoint.mjJNT_SLIDE): _Layout((" [m]",), (" rate [m/s]",)),
    int(mujoco.mjtJoint.mjJNT_BALL): _Layout(_QUATERNION, _TURNING),
    int(mujoco.mjtJoint.mjJNT_FREE): _Layout(
        (*(f" {axis} [m]" for axis in "xyz"), *_QUATERNION), (*(f" v{axis} [m/s]" for axis in "xyz"), *_TURNING)
    ),
}


def _load(file: Path) -> mujoco.MjModel:
    if not file.is_file():
        raise EnvError(
            f"{file}: there is no such file; for one beside your module, Path(__file__).with_name({file.name!r})"
        )
    try:
        return mujoco.MjModel.from_xml_path(str(file))
    except ValueError as error:  # MuJoCo's own words name the element or the line
        raise EnvError(f"{file}: MuJoCo cannot load it: {' '.join(str(error).split())}") from error


class _Elements(NamedTuple):
    """The elements of a model by their names; what is not there, or not usable, is an `EnvError`."""

    file: str
    model: mujoco.MjModel

    def joints(self, names: str | Sequence[str] | None) -> list[int]:
        every = range(self.model.njnt)
        if names is None and every:
            return list(every)
        return self._indices("joint", names or (), [self.model.joint(index).name for index in every])

    def sites(self, names: str | Sequence[str]) -> list[int]:
        sites = self._indices("site", names, [self.model.site(index).name for index in range(self.model.nsite)])
        for site in sites:
            if self.model.body_weldid[self.model.site_bodyid[site]] == 0:
                raise self._error(
                    f"goal_sites: site {self.model.site(site).name!r} is fixed to the world; name sites of the robot: "
                    "goals are drawn, they need no site"
                )
        return sites

    def axes(self, axes: str) -> list[int]:
        if not axes or len(set(axes)) < len(axes) or not set(axes) <= set("xyz"):
            raise self._error(f"goal_axes: some of xyz, each once, not {axes!r}")
        return ["xyz".index(axis) for axis in axes]

    def actuators(self) -> tuple[str, ...]:
        """Their names with the unit of a control."""
        if not self.model.nu:
            raise self._error(
                "there is no actuator, so nothing to act with; add <actuator><motor joint=... /></actuator>"
            )
        names: list[str] = []
        for index in range(self.model.nu):
            name = self.model.actuator(index).name or f"actuator {index}"
            low, high = self.model.actuator_ctrlrange[index]
            if not (self.model.actuator_ctrllimited[index] and math.isfinite(high - low) and low < high):
                raise self._error(f'actuator {name!r} has no limits; give it a ctrlrange, for example ctrlrange="-1 1"')
            names.append(name + _control_unit(self.model, index))
        return tuple(names)

    def substeps(self, control_period_s: float) -> int:
        """Physics steps in a control period."""
        timestep = float(self.model.opt.timestep)
        if not (timestep > 0 and control_period_s > 0 and math.isfinite(control_period_s / timestep)):
            raise self._error(f"control_period_s {control_period_s} and timestep {timestep} must be positive numbers")
        substeps = round(control_period_s / timestep)
        if not math.isclose(substeps * timestep, control_period_s, rel_tol=1e-6):
            below = max(1, math.floor(control_period_s / timestep))
            raise self._error(
                f"control_period_s {control_period_s:g} is no whole number of timesteps of {timestep:g} s; try "
                f"{below * timestep:g} or {(below + 1) * timestep:g}, or another <option timestep=... />"
            )
        return substeps

    def start(self, keyframe: str | None) -> np.ndarray:
        """The positions [nq] to start from, with which everything in the model is a finite number."""
        data = mujoco.MjData(self.model)
        if keyframe is not None:
            known = [self.model.key(index).name for index in range(self.model.nkey)]
            mujoco.mj_resetDataKeyframe(self.model, data, self._indices("keyframe", keyframe, known)[0])
            data.qvel[:] = 0
        start, origin = data.qpos.copy(), f"keyframe {keyframe!r}" if keyframe else "its bodies' positions"
        mujoco.mj_forward(self.model, data)
        joints = [_Joint(self.model, index) for index in range(self.model.njnt)]
        for joint in joints:
            if not np.isfinite(start[joint.positions]).all():
                raise self._error(
                    f"joint {joint.name!r} starts at {start[joint.positions]} by {origin}; give it numbers"
                )
        for site, position in enumerate(data.site_xpos):
            if not np.isfinite(position).all():
                raise self._error(f"site {self.model.site(site).name!r} is at {position} at the start; mend its pos")
        for joint in joints:
            if not np.isfinite(data.qfrc_passive[joint.velocities]).all():  # only the joint's own, so look here first
                raise self._error(
                    f"joint {joint.name!r} starts with a force that is no number; mend its damping, stiffness"
                )
        for joint in joints:
            if not np.isfinite(data.qacc[joint.velocities]).all():
                raise self._error(
                    f"joint {joint.name!r} starts with an acceleration that is no number; look at its armature, and at "
                    "the masses that it moves"
                )
        return start

    def _indices(self, kind: str, names: str | Sequence[str], known: Sequence[str]) -> list[int]:
        names = [names] if isinstance(names, str) else list(names)
        if not names:
            raise self._error(f"no {kind} is named; known: {_listed(known)}")
        for name in names:
            if name not in known or not name:
                nearest = nearest_first(name, filter(None, known))
                raise self._error(f"there is no {kind} {name!r}; known, nearest first: {_listed(nearest)}")
        if len(set(names)) < len(names):
            raise self._error(f"a {kind} is named twice: {_listed(names)}")
        return [known.index(name) for name in names]

    def _error(self, what: str) -> EnvError:
        return EnvError(f"{self.file}: {what}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(filter(None, names)) or "none that has a name"


def _control_unit(model: mujoco.MjModel, index: int) -> str:
    """In what a control of one joint's actuator counts, where its type tells; nothing otherwise."""
    joint = model.actuator_trnid[index, 0]
    kinds = {int(mujoco.mjtJoint.mjJNT_HINGE): ("N m", "rad"), int(mujoco.mjtJoint.mjJNT_SLIDE): ("N", "m")}
    on_joint = model.actuator_trntype[index] == mujoco.mjtTrn.mjTRN_JOINT
    kind = kinds.get(int(model.jnt_type[joint])) if on_joint else None
    stateless = model.actuator_dyntype[index] == mujoco.mjtDyn.mjDYN_NONE
    fixed = model.actuator_gaintype[index] == mujoco.mjtGain.mjGAIN_FIXED
    if kind is None or not (stateless and fixed and model.actuator_gear[index, 0] == 1):
        return ""
    force, place = kind
    gain, (offset, stiffness, damping) = model.actuator_gainprm[index, 0], model.actuator_biasprm[index, :3]
    if gain == 1 and not any((offset, stiffness, damping)):
        return f" [{force}]"
    if gain == -stiffness and not offset:
        return f" [{place}]"
    return f" [{place}/s]" if gain == -damping and not any((offset, stiffness)) else ""
