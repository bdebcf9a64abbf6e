"""The Franka Panda: an arm with a hand of two fingers, built in code from its published masses and lengths.

Kinematics and inertias are those of MuJoCo Menagerie's model. Capsules are drawn. Rows of spheres in the hand and the
fingers collide: for spheres, MJX finds the same contacts as MuJoCo's C engine, and is fastest.

Four of the seven joints move. Joints 3, 5 and 7 are locked at the angles of the tasks in arXiv 2408.11052, and the
links on both sides of them are merged into one body. Joints 1 and 2, whose axes intersect, belong to one body too. This
shortens MJX's pass along the arm, which XLA compiles to code that is hundreds of times slower for seven links on a CPU.

Each moving joint has a servo: torque = gain * (target - angle) - rate gain * rate, within the rated torque. A joint's
damping is its rated torque divided by its rated speed, so a distant target is approached at about that speed.
"""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import mujoco
import numpy as np

from training.envs.building import scenery

OPEN_M = 0.08  # range of each finger, from the middle
END_EFFECTOR = "end effector"  # the site at the last link's frame
LOCKED = {3: 0.0, 5: 0.0, 7: 1.4487}  # rad
MOVING = (1, 2, 4, 6)
NO_CONTACTS = {"contype": 0, "conaffinity": 0}  # except those of named pairs
SIDES = ("left", "right")  # of the hand; a finger's joint is named after its side

_ARMATURE = 0.1  # kg m^2, and kg for the fingers
_HAND_OFFSET_M = 0.107
_HAND_YAW = -np.pi / 4
_HAND_RADIUS_M, _HAND_HALF_M, _HAND_HEIGHT_M = 0.04, 0.06, 0.035  # a capsule across the hand
_FINGER_OFFSET_M = 0.0584
_FINGER_MASS_KG = 0.015
_FINGER_INERTIA = (2.375e-6, 2.375e-6, 7.5e-7)
_FINGER_RADIUS_M = 0.01
_FINGER_GAP_M = 0.0005  # from the middle of the hand to the inner side of a closed finger
_FINGER_DAMPING = 5.0  # N s/m
_FINGER_GAIN, _FINGER_RATE_GAIN = 500.0, 15.0  # N/m, N s/m
_FINGER_ENDS_M = (0.005, 0.065)  # of the capsule's axis
_TIP_M = 0.07  # along the finger
_HAND_SPHERES_M = (-0.05, 0.0, 0.05)  # across the hand
_FINGER_SPHERES_M = (0.025, 0.045, 0.065)  # along the finger
_WHITE, _GRAY = (0.93, 0.94, 0.95, 1.0), (0.3, 0.31, 0.33, 1.0)

Point = tuple[float, float, float]
Capsule = tuple[Point, Point, float]  # ends and radius, m


class _Link(NamedTuple):
    """A link in the frame that its joint rotates about z, and the pose of that frame in the previous one."""

    offset: Point  # m
    rotation: float  # about x, rad
    mass: float  # kg
    center: Point  # of mass, m
    inertia: tuple[float, float, float, float, float, float]  # xx, yy, zz, xy, xz, yz about the center, kg m^2
    shape: tuple[Capsule, ...]  # drawn
    limits: tuple[float, float] = (-2.8973, 2.8973)  # rad


_BASE: tuple[Capsule, ...] = (
    ((-0.06, 0, 0.03), (0, 0, 0.03), 0.07),
    ((0, 0, 0.03), (0, 0, 0.1), 0.075),
    ((0, 0, 0.1), (0, 0, 0.3), 0.06),
)
_RIGHT = np.pi / 2
_LINKS = (
    _Link(
        offset=(0, 0, 0.333),
        rotation=0,
        mass=4.970684,
        center=(0.003875, 0.002081, -0.04762),
        inertia=(0.70337, 0.70661, 0.009117, -0.000139, 0.006772, 0.019169),
        shape=(),  # drawn with the base
    ),
    _Link(
        offset=(0, 0, 0),
        rotation=-_RIGHT,
        mass=0.646926,
        center=(-0.003141, -0.02872, 0.003495),
        inertia=(0.007962, 0.02811, 0.025995, -0.003925, 0.010254, 0.000704),
        limits=(-1.7628, 1.7628),
        shape=(((0, 0, -0.05), (0, 0, 0.05), 0.062), ((0, 0, 0), (0, -0.19, 0), 0.055)),
    ),
    _Link(
        offset=(0, -0.316, 0),
        rotation=_RIGHT,
        mass=3.228604,
        center=(0.027518, 0.039252, -0.066502),
        inertia=(0.037242, 0.036155, 0.01083, -0.004761, -0.011396, -0.012805),
        shape=(((0, 0, -0.14), (0.02, 0, -0.03), 0.055), ((0.02, 0, -0.03), (0.0825, 0, 0), 0.055)),
    ),
    _Link(
        offset=(0.0825, 0, 0),
        rotation=_RIGHT,
        mass=3.587895,
        center=(-0.05317, 0.104419, 0.027454),
        inertia=(0.025853, 0.019552, 0.028323, 0.007796, -0.001332, 0.008641),
        limits=(-3.0718, -0.0698),
        shape=(((0, 0, -0.05), (0, 0, 0.05), 0.058), ((0, 0, 0), (-0.0825, 0.11, 0), 0.055)),
    ),
    _Link(
        offset=(-0.0825, 0.384, 0),
        rotation=-_RIGHT,
        mass=1.225946,
        center=(-0.011953, 0.041065, -0.038437),
        inertia=(0.035549, 0.029474, 0.008627, -0.002117, -0.004037, 0.000229),
        shape=(((0, 0, -0.26), (0, 0.04, -0.12), 0.05), ((0, 0.04, -0.12), (0, 0, 0), 0.045)),
    ),
    _Link(
        offset=(0, 0, 0),
        rotation=_RIGHT,
        mass=1.666555,
        center=(0.060149, -0.014117, -0.010517),
        inertia=(0.001964, 0.004354, 0.005433, 0.000109, -0.001158, 0.000341),
        limits=(-0.0175, 3.7525),
        shape=(((0, 0, -0.05), (0, 0, 0.05), 0.048), ((0, 0, 0), (0.088, 0, 0), 0.045)),
    ),
    _Link(
        offset=(0.088, 0, 0),
        rotation=_RIGHT,
        mass=0.735522,
        center=(0.010517, -0.004252, 0.061597),
        inertia=(0.012516, 0.010027, 0.004815, -0.000428, -0.001196, -0.000741),
        shape=(((0, 0, -0.02), (0, 0, 0.075), 0.045),),
    ),
)


class _Servo(NamedTuple):
    """The servo of a joint."""

    gain: float  # N m/rad
    rate_gain: float  # N m s/rad
    torque: float  # rated, N m
    speed: float  # rated, rad/s


# The highest gains that are stable with physics steps of 5 ms in every pose; they hold a target within 2 degrees.
_SERVOS = {
    1: _Servo(gain=400, rate_gain=0, torque=87, speed=2.175),
    2: _Servo(gain=3000, rate_gain=90, torque=87, speed=2.175),
    4: _Servo(gain=1000, rate_gain=0, torque=87, speed=2.175),
    6: _Servo(gain=400, rate_gain=15, torque=12, speed=2.61),
}


def add_panda(spec: mujoco.MjSpec, targets: Mapping[int, tuple[float, float]], *, fingers: bool) -> list[str]:
    """Add the robot to the world, its base at the origin, and a servo to each moving joint.

    Args:
        targets: the range of a servo's target angles, by joint, in rad.
        fingers: whether the hand has fingers, both with servos whose targets are 0 to `OPEN_M`.

    Returns:
        The names of the geoms for collisions. They collide only in pairs that the caller adds.
    """
    spec.compiler.fusestatic = True
    spec.compiler.degree = False
    body = spec.worldbody
    _draw(body, _BASE)
    first, *others = _LINKS
    for index, link in enumerate(others, start=2):
        body = _add_link(body, link, name=f"link {index}", locked_at=LOCKED.get(index, 0.0))
        if index == 2:
            _add_shoulder(spec, body, first, targets=targets[1])
        if index in MOVING:
            _add_joint(spec, body, index, limits=link.limits, targets=targets[index])
        _draw(body, link.shape)
    body.add_site(name=END_EFFECTOR)
    hand = body.add_body(name="hand", pos=[0, 0, _HAND_OFFSET_M], quat=_about([0, 0, 1], _HAND_YAW))
    height = _HAND_HEIGHT_M  # the hand is massless: the last link's inertia includes it
    _draw(hand, [((0, -_HAND_HALF_M, height), (0, _HAND_HALF_M, height), _HAND_RADIUS_M)])
    colliders = _add_spheres(hand, "hand", [(0, y, height) for y in _HAND_SPHERES_M], radius=_HAND_RADIUS_M)
    return colliders + _add_fingers(spec, hand) if fingers else colliders


def _add_link(parent: mujoco.MjsBody, link: _Link, *, name: str, locked_at: float) -> mujoco.MjsBody:
    turned = np.zeros(4)
    mujoco.mju_mulQuat(turned, _about([1, 0, 0], link.rotation), _about([0, 0, 1], locked_at))
    return parent.add_body(
        name=name,
        pos=list(link.offset),
        quat=turned,
        mass=link.mass,
        ipos=list(link.center),
        fullinertia=list(link.inertia),
        explicitinertial=True,
    )


def _add_shoulder(spec: mujoco.MjSpec, second: mujoco.MjsBody, first: _Link, *, targets: tuple[float, float]) -> None:
    """Let the second link rotate about the first joint too.

    The first link rotates about the vertical only, so only its inertia about that axis matters.
    """
    second.pos = list(first.offset)
    x, y, _ = first.center
    hinge = _add_joint(
        spec, second, 1, limits=first.limits, targets=targets, axis=(0, -1, 0)
    )  # the vertical, in this link's frame
    hinge.armature += first.inertia[2] + first.mass * (x**2 + y**2)


def _add_joint(
    spec: mujoco.MjSpec,
    body: mujoco.MjsBody,
    index: int,
    *,
    limits: tuple[float, float],
    targets: tuple[float, float],
    axis: Point = (0, 0, 1),
) -> mujoco.MjsJoint:
    servo = _SERVOS[index]
    hinge = body.add_joint(
        name=f"joint {index}",
        type=mujoco.mjtJoint.mjJNT_HINGE,
        axis=list(axis),
        range=list(limits),
        limited=mujoco.mjtLimited.mjLIMITED_TRUE,
        armature=_ARMATURE,
    )
    hinge.damping = [servo.torque / servo.speed, 0, 0]  # linear term, then higher orders
    motor = _add_servo(spec, f"joint {index}", gain=servo.gain, rate_gain=servo.rate_gain, targets=targets)
    motor.forcerange = [-servo.torque, servo.torque]
    motor.forcelimited = True
    return hinge


def _add_fingers(spec: mujoco.MjSpec, hand: mujoco.MjsBody) -> list[str]:
    """Add two fingers, coupled so that they mirror each other; return the names of their geoms for collisions."""
    colliders: list[str] = []
    for side, yaw in zip(SIDES, (0.0, np.pi), strict=True):
        finger = hand.add_body(
            name=side,
            pos=[0, 0, _FINGER_OFFSET_M],
            quat=_about([0, 0, 1], yaw),
            mass=_FINGER_MASS_KG,
            inertia=list(_FINGER_INERTIA),
            explicitinertial=True,
        )
        slide = finger.add_joint(
            name=side,
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[0, 1, 0],
            range=[0, OPEN_M],
            limited=mujoco.mjtLimited.mjLIMITED_TRUE,
            armature=_ARMATURE,
        )
        slide.damping = [_FINGER_DAMPING, 0, 0]
        _add_servo(spec, side, gain=_FINGER_GAIN, rate_gain=_FINGER_RATE_GAIN, targets=(0, OPEN_M))
        y, (low, high) = _FINGER_GAP_M + _FINGER_RADIUS_M, _FINGER_ENDS_M
        _draw(finger, [((0, y, low), (0, y, high), _FINGER_RADIUS_M)], rgba=_GRAY)
        places = [(0, y, z) for z in _FINGER_SPHERES_M]
        colliders += _add_spheres(finger, f"{side} finger", places, radius=_FINGER_RADIUS_M)
        finger.add_site(name=f"{side} tip", pos=[0, 0, _TIP_M])
    coupling = spec.add_equality(type=mujoco.mjtEq.mjEQ_JOINT, objtype=mujoco.mjtObj.mjOBJ_JOINT)
    coupling.name1, coupling.name2 = SIDES
    coupling.data[1] = 1
    coupling.solimp = [0.95, 0.99, 0.001, 0.5, 2]
    return colliders


def _add_servo(
    spec: mujoco.MjSpec, target: str, *, gain: float, rate_gain: float, targets: tuple[float, float]
) -> mujoco.MjsActuator:
    servo = spec.add_actuator(
        name=target,
        target=target,
        trntype=mujoco.mjtTrn.mjTRN_JOINT,
        biastype=mujoco.mjtBias.mjBIAS_AFFINE,
        ctrlrange=list(targets),
        ctrllimited=True,
    )
    servo.gainprm[0] = gain
    servo.biasprm[1:3] = [-gain, -rate_gain]
    return servo


def _draw(body: mujoco.MjsBody, capsules: Iterable[Capsule], *, rgba: tuple[float, ...] = _WHITE) -> None:
    """Add capsules that are drawn, without mass or contacts."""
    for start, end, radius in capsules:
        body.add_geom(
            type=mujoco.mjtGeom.mjGEOM_CAPSULE,
            fromto=[*start, *end],
            size=[radius, 0, 0],
            mass=0,
            rgba=rgba,
            **NO_CONTACTS,
        )


def _add_spheres(body: mujoco.MjsBody, name: str, places: Iterable[Point], *, radius: float) -> list[str]:
    """Add spheres without mass that are not drawn; return their names."""
    names: list[str] = []
    for index, place in enumerate(places):
        names.append(f"{name} {index}")
        body.add_geom(
            name=names[-1],
            type=mujoco.mjtGeom.mjGEOM_SPHERE,
            pos=list(place),
            size=[radius, 0, 0],
            mass=0,
            group=scenery.UNSEEN,
            **NO_CONTACTS,
        )
    return names


def _about(axis: list[float], angle: float) -> np.ndarray:
    quaternion = np.zeros(4)
    mujoco.mju_axisAngle2Quat(quaternion, np.array(axis, float), angle)
    return quaternion
