"""Find the elements of an MJCF model by name, and refuse those that are missing or cannot be used."""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numpy as np

from training.envs.building import scenery
from training.envs.core import actuators
from training.envs.core.env_spec import check_text, positive
from training.envs.core.errors import EnvError, nearest_first

_MAX_SUBSTEPS = 1000  # physics steps in a control period; with more, the period was probably in milliseconds
_START_SLACK = 0.05  # share of its range that a joint may start outside: limits are soft, and keyframes rounded


def load(file: Path) -> mujoco.MjModel:
    """Load an MJCF file, and add a sky and light for pictures if it has none.

    Raises:
        EnvError: no such file, or MuJoCo cannot load it.
    """
    if not file.is_file():
        raise EnvError(
            f"{file}: no such file; for a file next to your module, use Path(__file__).with_name({file.name!r})"
        )
    try:
        spec = mujoco.MjSpec.from_file(str(file))
        scenery.add_sky_and_light(spec)
        scenery.add_floor_below(spec)
        return spec.compile()
    except ValueError as error:  # MuJoCo's message names the element or the line
        raise EnvError(f"{file}: MuJoCo cannot load it: {' '.join(str(error).split())}") from error


class Elements(NamedTuple):
    """The elements of the model in `file`. Methods raise EnvError for elements that are missing or cannot be used."""

    file: str
    model: mujoco.MjModel

    def joints(self, names: str | Sequence[str] | None) -> list[int]:
        """Return the indices of the joints `names`, or of all joints."""
        every = range(self.model.njnt)
        if names is None and every:
            return list(every)
        return self._indices("joint", () if names is None else names, [self.model.joint(index).name for index in every])

    def sites(self, names: str | Sequence[str]) -> list[int]:
        """Return the indices of the sites `names`, all of which the robot must be able to move."""
        sites = self._indices("site", names, [self.model.site(index).name for index in range(self.model.nsite)])
        for site in sites:
            carrier = self.model.body_weldid[self.model.site_bodyid[site]]
            on_mocap = self.model.body_mocapid[carrier] >= 0
            if carrier == 0 or on_mocap:
                what = "on a mocap body, which physics does not move" if on_mocap else "fixed to the world"
                raise self._error(
                    f"goal_sites: site {self.model.site(site).name!r} is {what}; name sites of the robot. The goals "
                    "themselves need no site"
                )
        return sites

    def axes(self, axes: str) -> list[int]:
        """Return the indices of world axes."""
        check_text(axes, field="goal_axes", where=self.file)
        if not axes or len(set(axes)) < len(axes) or not set(axes) <= set("xyz"):
            raise self._error(f"goal_axes must be some of xyz, each once, got {axes!r}")
        return ["xyz".index(axis) for axis in axes]

    def actuators(self) -> tuple[str, ...]:
        """Return the names of all actuators, with the units of their controls."""
        if not self.model.nu:
            raise self._error("there is no actuator; add one, for example <actuator><motor joint=... /></actuator>")
        names: list[str] = []
        for index in range(self.model.nu):
            name = self.model.actuator(index).name or f"actuator {index}"
            low, high = self.model.actuator_ctrlrange[index]
            if not (self.model.actuator_ctrllimited[index] and math.isfinite(high - low) and low < high):
                raise self._error(f'actuator {name!r} has no limits; give it a ctrlrange, for example ctrlrange="-1 1"')
            names.append(name + _control_unit(self.model, index))
        return tuple(names)

    def substeps(self, control_period_s: float) -> int:
        """Return the physics steps in a control period."""
        timestep = float(self.model.opt.timestep)
        control_period_s = positive(control_period_s, field="control_period_s", where=self.file, usual=2 * timestep)
        if not (timestep > 0 and math.isfinite(control_period_s / timestep)):
            raise self._error(
                f"control_period_s and timestep must be positive numbers, got {control_period_s} and {timestep}"
            )
        substeps = round(control_period_s / timestep)
        if substeps > _MAX_SUBSTEPS:
            raise self._error(
                f"control_period_s is in seconds, and {control_period_s:g} is {substeps:,} timesteps of {timestep:g} "
                f"s; try {10 * timestep:g}"
            )
        if not math.isclose(substeps * timestep, control_period_s, rel_tol=1e-6):
            below = max(1, math.floor(control_period_s / timestep))
            raise self._error(
                f"control_period_s must be a multiple of the timestep, {timestep:g} s, got {control_period_s:g}; try "
                f"{below * timestep:g} or {(below + 1) * timestep:g}, or another <option timestep=... />"
            )
        return substeps

    def start(self, keyframe: str | None) -> np.ndarray:
        """Return the joint positions [nq] to start from, after checking limits and that the model is finite there."""
        data, origin = mujoco.MjData(self.model), "the positions of the bodies"
        if keyframe is not None:
            check_text(keyframe, field="keyframe", where=self.file)
            known = [self.model.key(index).name for index in range(self.model.nkey)]
            mujoco.mj_resetDataKeyframe(self.model, data, self._indices("keyframe", keyframe, known)[0])
            data.qvel[:], origin = 0, f"keyframe {keyframe!r}"
        start = data.qpos.copy()
        mujoco.mj_forward(self.model, data)
        joints = [Joint(self.model, index) for index in range(self.model.njnt)]
        for index, joint in enumerate(joints):
            self._require_start(index, joint, start[joint.positions], origin=origin)
        self._require_finite(data, joints)
        return start

    def rest_control(self, keyframe: str | None) -> np.ndarray:
        """Return the control [nu] of the keyframe, else of the file's first one, else zeros."""
        index = None if keyframe is None else self.model.key(keyframe).id
        rest = actuators.rest_control(self.model, index)
        for actuator, control in enumerate(rest):
            if not np.isfinite(control):
                name = self.model.actuator(actuator).name or f"actuator {actuator}"
                raise self._error(
                    f"keyframe {self.model.key(index or 0).name!r} has the control {control} for {name!r}; use a "
                    "finite number"
                )
        return rest

    def place(self, site: int, positions: np.ndarray) -> np.ndarray:
        """Return the position of a site, [3] in meters, at the joint positions [nq]."""
        data = mujoco.MjData(self.model)
        data.qpos[:] = positions
        mujoco.mj_kinematics(self.model, data)
        return data.site_xpos[site].copy()

    def _require_start(self, index: int, joint: "Joint", positions: np.ndarray, *, origin: str) -> None:
        """Refuse positions that are not finite, or too far outside the joint's limits, which causes a large force."""
        if not np.isfinite(positions).all():
            raise self._error(f"joint {joint.name!r} starts at {positions} in {origin}; use finite numbers")
        low, high = self.model.jnt_range[index]
        slack = _START_SLACK * (high - low)
        if self.model.jnt_limited[index] and len(positions) == 1 and not low - slack <= positions[0] <= high + slack:
            raise self._error(
                f"joint {joint.name!r} starts at {positions[0]:.4g} in {origin}, outside its range {low:.4g} to "
                f"{high:.4g}; start it inside, for example with a keyframe"
            )

    def _require_finite(self, data: mujoco.MjData, joints: Sequence["Joint"]) -> None:
        """Report what is not finite at the start: a site, or a joint's own force, or an acceleration."""
        for site, position in enumerate(data.site_xpos):
            if not np.isfinite(position).all():
                raise self._error(f"site {self.model.site(site).name!r} is at {position} at the start; check its pos")
        for joint in joints:
            if not np.isfinite(
                data.qfrc_passive[joint.velocities]
            ).all():  # depends on this joint only, so checked first
                raise self._error(
                    f"joint {joint.name!r} starts with a force that is not finite; check its damping and stiffness"
                )
        for joint in joints:
            if not np.isfinite(data.qacc[joint.velocities]).all():
                raise self._error(
                    f"joint {joint.name!r} starts with an acceleration that is not finite; check its armature and the "
                    "masses that it moves"
                )

    def _indices(self, kind: str, wanted: Any, known: Sequence[str]) -> list[int]:
        names = list(wanted) if isinstance(wanted, Iterable) and not isinstance(wanted, str) else [wanted]
        if not names:
            raise self._error(f"name one {kind} or more; known: {_listed(known)}")
        for name in names:
            if not isinstance(name, str):
                raise self._error(f"the name of a {kind} must be a string, got {name!r:.80}; known: {_listed(known)}")
            if name not in known or not name:
                nearest = nearest_first(name, filter(None, known))
                raise self._error(f"there is no {kind} {name!r}; known, nearest first: {_listed(nearest)}")
        if len(set(names)) < len(names):
            raise self._error(f"a {kind} is named twice: {_listed(names)}")
        return [known.index(name) for name in names]

    def _error(self, what: str) -> EnvError:
        return EnvError(f"{self.file}: {what}")


class Joint:
    """Where a joint's values are in `qpos` and `qvel`, their names, and their limits."""

    def __init__(self, model: mujoco.MjModel, index: int) -> None:
        layout = _LAYOUTS[int(model.jnt_type[index])]
        self.name = model.joint(index).name or f"joint {index}"
        self.position_names = tuple(f"{self.name}{label}" for label in layout.positions)
        self.velocity_names = tuple(f"{self.name}{label}" for label in layout.velocities)
        self.positions = model.jnt_qposadr[index] + np.arange(len(layout.positions))
        limited = model.jnt_limited[index] and len(layout.positions) == 1
        low, high = model.jnt_range[index] if limited else (-math.inf, math.inf)
        self.low, self.high = (np.full(len(layout.positions), end) for end in (low, high))
        self.velocities = model.jnt_dofadr[index] + np.arange(len(layout.velocities))


def quaternions(joints: Sequence[Joint]) -> tuple[int, ...]:
    """Return the index of each quaternion among the positions of `joints`: of every ball and free joint."""
    starts = np.cumsum([0, *(len(joint.positions) for joint in joints)])
    return tuple(
        int(start) + joint.position_names.index(f"{joint.name}{_QUATERNION[0]}")
        for start, joint in zip(starts, joints, strict=False)
        if len(joint.positions) >= len(_QUATERNION)
    )


class _Layout(NamedTuple):
    """The values of a type of joint, as labels that follow the joint's name."""

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


def _listed(names: Iterable[str]) -> str:
    return ", ".join(filter(None, names)) or "none with a name"


def _control_unit(model: mujoco.MjModel, index: int) -> str:
    """Return the unit of an actuator's control in brackets if it follows from its type, else an empty string."""
    joint = model.actuator_trnid[index, 0]
    units = {int(mujoco.mjtJoint.mjJNT_HINGE): ("N m", "rad"), int(mujoco.mjtJoint.mjJNT_SLIDE): ("N", "m")}
    on_joint = model.actuator_trntype[index] == mujoco.mjtTrn.mjTRN_JOINT
    unit = units.get(int(model.jnt_type[joint])) if on_joint else None
    if unit is None or model.actuator_gear[index, 0] != 1:
        return ""
    force, place = unit
    match actuators.kind(model, index):
        case "torque" if model.actuator_gainprm[index, 0] == 1:
            return f" [{force}]"
        case "position":
            return f" [{place}]"
        case "velocity":
            return f" [{place}/s]"
        case _:
            return ""
