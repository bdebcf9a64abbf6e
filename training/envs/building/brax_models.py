"""Load the model files that brax ships and prepare them for MJX."""

# MuJoCo is compiled and ships no type information.
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from pathlib import Path

import brax.envs
import mujoco

from training.envs.building import scenery

_FOLDER = Path(brax.envs.__file__).parent / "assets"


def load(
    file: str,
    *,
    timestep_s: float,
    iterations: int = 1,
    ls_iterations: int = 4,
    floor: str = "floor",
    tile_m: float = 1.0,
) -> mujoco.MjSpec:
    """Return the robot of `file`, with actuators in N m, to compile or add to.

    Args:
        iterations: Newton iterations of the solver per physics step, each with `ls_iterations` line search iterations.
        floor: name of the plane that is drawn as the floor, with tiles of `tile_m` meters.
    """
    spec = mujoco.MjSpec.from_file(str(_FOLDER / file))
    spec.option.timestep = timestep_s
    spec.option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    spec.option.iterations = iterations
    spec.option.ls_iterations = ls_iterations
    spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_EULERDAMP
    for numeric in list(spec.numerics):  # settings of brax's own physics, which MJX would read as its own
        spec.delete(numeric)
    for motor in spec.actuators:
        motor.name = motor.target
        set_torque(motor, motor.gear[0] * motor.ctrlrange[1])
    scenery.add_scenery(spec, floor=floor, tile_m=tile_m)
    scenery.paint(spec.worldbody.first_body())
    return spec


def set_torque(motor: mujoco.MjsActuator, torque: float) -> None:
    """Set the range of `motor` to -`torque` to `torque`, in N m."""
    motor.gear = [1, 0, 0, 0, 0, 0]
    motor.ctrlrange = [-torque, torque]
