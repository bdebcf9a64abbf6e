"""Facts about a model's actuators: what each of them drives, and which control leaves the robot at rest."""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

import mujoco
import numpy as np

_LAG_ONLY = frozenset(  # activation dynamics after which the activation settles at the control
    int(kind) for kind in (mujoco.mjtDyn.mjDYN_NONE, mujoco.mjtDyn.mjDYN_FILTER, mujoco.mjtDyn.mjDYN_FILTEREXACT)
)
_MOVES = frozenset(  # transmissions along which a force moves joints
    int(kind)
    for kind in (
        mujoco.mjtTrn.mjTRN_JOINT,
        mujoco.mjtTrn.mjTRN_JOINTINPARENT,
        mujoco.mjtTrn.mjTRN_TENDON,
        mujoco.mjtTrn.mjTRN_SITE,
        mujoco.mjtTrn.mjTRN_SLIDERCRANK,
    )
)


def kinds(model: mujoco.MjModel) -> tuple[str, ...]:
    """Return what each actuator drives, [nu]: position, velocity, torque or other, see `kind`."""
    return tuple(kind(model, index) for index in range(model.nu))


def kind(model: mujoco.MjModel, index: int) -> str:
    """Return what the control of an actuator stands for, from its gain and bias (MuJoCo's actuation model).

    position: a servo's target, force = kp * (control - length) - kv * velocity. velocity: force = kv * (control -
    velocity). torque: a force or torque in proportion to the control. other: everything else, such as a muscle, a
    damper, adhesion, a servo whose gain is not its stiffness, or an integrated velocity (`intvelocity`), whose control
    changes a target. A position or velocity servo may lag behind its control (`timeconst`).
    """
    fixed = model.actuator_gaintype[index] == mujoco.mjtGain.mjGAIN_FIXED
    if not (fixed and int(model.actuator_trntype[index]) in _MOVES):
        return "other"
    gain, bias = model.actuator_gainprm[index, 0], _bias(model, index)
    dynamics = int(model.actuator_dyntype[index])
    if gain == 0 or bias is None or dynamics not in _LAG_ONLY:
        return "other"
    offset, stiffness, damping = bias
    if not any(bias):
        return "torque" if dynamics == mujoco.mjtDyn.mjDYN_NONE else "other"
    if offset or gain < 0:
        return "other"
    if stiffness == -gain:
        return "position"
    return "velocity" if not stiffness and damping == -gain else "other"


def rest_control(model: mujoco.MjModel, keyframe: int | None = None) -> np.ndarray:
    """Return the control [nu] of `keyframe`, else of the model's first keyframe, else zeros."""
    if keyframe is None and not model.nkey:
        return np.zeros(model.nu)
    return model.key_ctrl[keyframe or 0].copy()


def _bias(model: mujoco.MjModel, index: int) -> tuple[float, float, float] | None:
    """Return the terms of the bias that are constant, times length and times velocity; None if it is not affine."""
    biastype = int(model.actuator_biastype[index])
    if biastype == mujoco.mjtBias.mjBIAS_NONE:
        return 0.0, 0.0, 0.0
    if biastype != mujoco.mjtBias.mjBIAS_AFFINE:
        return None
    offset, stiffness, damping = model.actuator_biasprm[index, :3].tolist()
    return offset, stiffness, damping
