"""Import, build and check a user's own environment; every error of its code becomes a one-line error."""

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from policy.spec import QUATERNION_SIZE, SpecError
from training.envs.core.env_spec import EnvSpec
from training.envs.core.errors import EnvError, one_line
from training.envs.core.goal_env import GoalEnv

_SHOWN = 80  # characters of a value that an error shows
_LENGTH_SLACK = 0.01  # of a quaternion at a reset


def import_module(module: str) -> None:
    """Import a module by name, from the current folder first, then from PYTHONPATH.

    Raises:
        EnvError, SpecError: no such module, or it cannot be imported.
    """
    if not all(module.split(".")):
        raise EnvError(f"{module!r} is not a module name; for a file my_robot.py, use my_robot:NAME in its folder")
    here = str(Path.cwd())
    if sys.path[0] != here:
        sys.path.insert(
            0, here
        )  # as for a script in this folder; `python training/run.py` puts training/ there instead
    try:
        importlib.import_module(module)
    except (EnvError, SpecError):
        raise
    except (Exception, SystemExit) as error:  # the module may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise EnvError(
                f"there is no module {module!r} in {here} or on PYTHONPATH; for a file my_robot.py, use my_robot:NAME "
                "in its folder, or add its folder to PYTHONPATH"
            ) from error
        raise EnvError(f"{module} cannot be imported: {one_line(error)}") from error


def build(function: Callable[..., Any], name: str, *, impl: str) -> GoalEnv:
    """Build the environment `name` with the user's `function`.

    Raises:
        EnvError, SpecError: it fails, or returns something else; the message names the function and its module.
    """
    call = f"{_dotted(function)}({name!r}, impl={impl!r})"
    try:
        env = function(name, impl=impl)
    except (EnvError, SpecError):
        raise
    except (Exception, SystemExit) as error:  # the function may raise anything
        raise EnvError(f"{name}: {call} failed: {one_line(error)}") from error
    if not isinstance(env, GoalEnv):
        raise EnvError(f"{name}: {call} returned {env!r:.{_SHOWN}}; it must return a GoalEnv, such as an MjcfEnv")
    if not isinstance(getattr(env, "spec", None), EnvSpec):
        raise EnvError(f"{name}: {call} returned an environment without a spec; pass an EnvSpec to GoalEnv.__init__")
    return env


def require_sound(env: GoalEnv) -> None:
    """Check its action limits and one reset, because compiled code cannot report a wrong shape or NaN by name.

    Raises:
        EnvError: the reset fails, or its result or the action limits do not fit the spec.
    """
    where = ": ".join(filter(None, (env.spec.source, env.spec.name)))
    _require_limits(env, where=where)
    try:
        info = jax.jit(env.reset)(jax.random.key(0)).info
        once, again = (env.sample_task(jax.random.key(0)) for _ in range(2))
    except Exception as error:  # the user's methods may raise anything
        raise EnvError(f"{where}: a reset failed: {one_line(error)}") from error
    kinds = ("start's positions differ", "start's velocities differ", "goal differs")
    for kind, drawn, redrawn in zip(kinds, once, again, strict=True):
        if not np.array_equal(drawn, redrawn, equal_nan=True):
            raise EnvError(
                f"{where}: the {kind} between two draws with the same key; use jax.random and that key. Numbers from "
                "Python's or numpy's random are drawn once, at compilation, and then stay the same"
            )
    for kind, names, quaternions in (
        ("state", env.spec.state_names, env.spec.state_quaternions),
        ("goal", env.spec.goal_names, env.spec.goal_quaternions),
    ):
        numbers = np.asarray(info[kind])
        if numbers.shape != (len(names),):
            raise EnvError(
                f"{where}: a {kind} has shape {list(numbers.shape)}, but {kind}_names has length {len(names)}"
            )
        broken = [f"{name} is {number}" for name, number in zip(names, numbers, strict=True) if not np.isfinite(number)]
        if broken:
            raise EnvError(f"{where}: the {kind} at a reset is not finite: {', '.join(broken)}; check its start")
        _require_quaternions(numbers, field=f"{kind}_quaternions", starts=quaternions, where=where)


def _require_quaternions(numbers: np.ndarray, *, field: str, starts: tuple[int, ...], where: str) -> None:
    """Refuse indices at which there is no unit quaternion in `numbers`, a state or a goal at a reset."""
    for start in starts:
        values = numbers[start : start + QUATERNION_SIZE]
        length = float(np.linalg.norm(values))
        if abs(length - 1) > _LENGTH_SLACK:
            raise EnvError(
                f"{where}: {field} contains {start}, but the values {start} to {start + QUATERNION_SIZE - 1} at a "
                f"reset have the length {length:.3g}; a quaternion has 1"
            )


def _require_limits(env: GoalEnv, *, where: str) -> None:
    """Refuse an action without a low and a high end, which -1 and 1 stand for."""
    names, lows, highs = env.spec.action_names, env.action_low, env.action_high
    if not len(names) == len(lows) == len(highs):
        lengths = f"{len(names)}, {len(lows)} and {len(highs)}"
        raise EnvError(f"{where}: action_names, action_low and action_high must have the same length, got {lengths}")
    for name, low, high in zip(names, lows, highs, strict=True):
        if not -np.inf < low < high < np.inf:
            raise EnvError(
                f'{where}: {name!r} has the range {low:g} to {high:g}; give its actuator a ctrlrange, such as "-1 1"'
            )


def _dotted(function: Callable[..., Any]) -> str:
    """Return a function's name with its module's."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
