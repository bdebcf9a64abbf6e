"""Where to put the arm's joints so that its hand is somewhere, by MuJoCo C's kinematics; and the arm driven in C."""

import re

import mujoco
import numpy as np
from scipy.optimize import least_squares

from training.envs.manipulation.arm import Arm

OPEN, CLOSED = 0.08, 0.0  # m, what the fingers are told
FINGERTIP_M = 0.107 + 0.0584 + 0.055  # from the end effector to the middle of the fingers' tips
_UPRIGHT_M = 0.3  # how far off the place the hand may be, at most, for pointing down
_BEGINNINGS = ((0.5, 0.5, 0.5, 0.5), (0.5, 0.3, 0.5, 0.2), (0.5, 0.7, 0.3, 0.6))  # shares of the angles' ranges


class Driver:
    """The arm in MuJoCo C, its cube at rest at `cube: (x, y)`."""

    def __init__(self, env: Arm, cube: tuple[float, float] | None = None) -> None:
        self.model, self.data = env.model, mujoco.MjData(env.model)
        self._low, self._high = np.array(env.action_low)[:4], np.array(env.action_high)[:4]
        self.angles = [env.model.joint(f"joint {index}").qposadr[0] for index in (1, 2, 4, 6)]
        self.data.qpos[self.angles] = [1.571, 0.742, -1.571, 3.054]
        if cube is not None:
            self.data.qpos[:7] = [*cube, 0.03, 1, 0, 0, 0]
            self.data.qpos[-2:] = 0.04
        mujoco.mj_forward(self.model, self.data)

    @property
    def cube(self) -> np.ndarray:
        return self.data.qpos[:3].copy()

    def pose(self, place: np.ndarray, *, along: float = 0.0, downwards: bool = False) -> np.ndarray:
        """Angles [4] that bring the point `along` meters before the end effector to `place`, the hand pointing down."""
        scratch = mujoco.MjData(self.model)

        def errors(angles: np.ndarray) -> np.ndarray:
            scratch.qpos[self.angles] = angles
            mujoco.mj_kinematics(self.model, scratch)
            hand = scratch.site("end effector")
            ahead = hand.xmat.reshape(3, 3)[:, 2]
            tilt = _UPRIGHT_M * (ahead - [0, 0, -1]) if downwards else np.zeros(3)
            return np.concatenate([hand.xpos + along * ahead - place, tilt])

        begins = (self._low + np.array(share) * (self._high - self._low) for share in _BEGINNINGS)
        found = [least_squares(errors, begin, bounds=(self._low, self._high)) for begin in begins]
        return min(found, key=lambda result: result.cost).x

    def action(self, angles: np.ndarray, *, closed: bool | None = None) -> np.ndarray:
        """The action that asks for `angles: [4]`, and for the fingers to close, if there are any."""
        arm = 2 * (angles - self._low) / (self._high - self._low) - 1
        return arm if closed is None else np.append(arm, 1.0 if closed else -1.0)

    def move(self, angles: np.ndarray, *, fingers: float, seconds: float) -> None:
        """Lead the targets to `angles: [4]` in half of the time and hold them there for the other half."""
        steps = round(seconds / self.model.opt.timestep)
        begin = self.data.qpos[self.angles].copy()
        for step in range(steps):
            self.data.ctrl[:4] = begin + min(1, 2 * step / steps) * (angles - begin)
            self.data.ctrl[4:] = fingers
            mujoco.mj_step(self.model, self.data)

    def fingertips_to(self, place: tuple[float, float, float], *, fingers: float, seconds: float = 1.0) -> None:
        """Move the fingertips, the hand pointing down."""
        angles = self.pose(np.array(place), along=FINGERTIP_M, downwards=True)
        self.move(angles, fingers=fingers, seconds=seconds)

    def touching(self) -> set[tuple[str, ...]]:
        """The pairs of things that touch, under names without the number of the sphere that does."""
        pairs = (contact.geom for contact in self.data.contact if contact.dist < 0)
        return {tuple(sorted(self._thing(geom) for geom in pair)) for pair in pairs}

    def _thing(self, geom: int) -> str:
        name = self.model.geom(geom).name
        return "cube" if name.startswith("corner") else re.sub(r"^(hand|left finger|right finger) \d$", r"\1", name)
