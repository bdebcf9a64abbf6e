"""Environments of the user's own: what their code does wrong when it is imported, called and reset, in one line."""

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from policy.spec import SpecError
from training.envs.core.env_spec import EnvSpec
from training.envs.core.errors import EnvError, told
from training.envs.core.goal_env import GoalEnv

_SHOWN = 80  # characters of a value that an error shows


def import_module(module: str) -> None:
    """Import a module by name, from the current folder first, then from PYTHONPATH.

    Raises:
        EnvError, SpecError: there is no such module, or it cannot be imported.
    """
    if not all(module.split(".")):
        raise EnvError(f"{module!r} is no name of a module; for a file my_robot.py, say my_robot:NAME in its folder")
    here = str(Path.cwd())
    if sys.path[0] != here:
        sys.path.insert(0, here)  # as for a script of yours; `python training/run.py` puts training/ there instead
    try:
        importlib.import_module(module)
    except (EnvError, SpecError):
        raise
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise EnvError(
                f"there is no module {module!r} in {here} or on PYTHONPATH; for a file my_robot.py, say my_robot:NAME "
                "in its folder, or put its folder on PYTHONPATH"
            ) from error
        raise EnvError(f"{module} cannot be imported: {told(error)}") from error


def build(function: Callable[..., Any], name: str, *, impl: str) -> GoalEnv:
    """The environment `name` as the user's `function` builds it.

    Raises:
        EnvError, SpecError: it fails, or gives something else; the message names the function and its module.
    """
    call = f"{_dotted(function)}({name!r}, impl={impl!r})"
    try:
        env = function(name, impl=impl)
    except (EnvError, SpecError):
        raise
    except (Exception, SystemExit) as error:  # whatever the function does
        raise EnvError(f"{name}: {call} failed: {told(error)}") from error
    if not isinstance(env, GoalEnv):
        raise EnvError(f"{name}: {call} gave {env!r:.{_SHOWN}}; let it return a GoalEnv, such as an MjcfEnv")
    if not isinstance(getattr(env, "spec", None), EnvSpec):
        raise EnvError(f"{name}: {call} gave an environment without a spec; pass an EnvSpec to GoalEnv.__init__")
    return env


def require_sound(env: GoalEnv) -> None:
    """Look at its actions, and at one reset: compiled code cannot say that its numbers are none, or which.

    Raises:
        EnvError: the reset fails, or it or the actions' limits are not what the spec promises.
    """
    where = ": ".join(filter(None, (env.spec.source, env.spec.name)))
    _require_limits(env, where=where)
    try:
        info = jax.jit(env.reset)(jax.random.key(0)).info
        once, again = (env.sample_task(jax.random.key(0)) for _ in range(2))
    except Exception as error:  # whatever the user's methods do
        raise EnvError(f"{where}: a reset failed: {told(error)}") from error
    kinds = ("start's positions differ", "start's velocities differ", "goal differs")
    for kind, drawn, redrawn in zip(kinds, once, again, strict=True):
        if not np.array_equal(drawn, redrawn, equal_nan=True):
            raise EnvError(
                f"{where}: the {kind} between two draws with one key; draw with jax.random and that key: what Python "
                "or numpy draws is drawn once, when the code is compiled, and the same ever after"
            )
    for kind, names in (("state", env.spec.state_names), ("goal", env.spec.goal_names)):
        numbers = np.asarray(info[kind])
        if numbers.shape != (len(names),):
            raise EnvError(f"{where}: a {kind} has the shape {list(numbers.shape)}, {kind}_names holds {len(names)}")
        broken = [f"{name} is {number}" for name, number in zip(names, numbers, strict=True) if not np.isfinite(number)]
        if broken:
            raise EnvError(f"{where}: the {kind} at a reset holds no number: {', '.join(broken)}; look at its start")


def _require_limits(env: GoalEnv, *, where: str) -> None:
    """Two ends to every action: without them, -1 and 1 stand for nothing."""
    names, lows, highs = env.spec.action_names, env.action_low, env.action_high
    if not len(names) == len(lows) == len(highs):
        found = f"action_low {len(lows)} and action_high {len(highs)} limits"
        raise EnvError(f"{where}: action_names holds {len(names)} names, but {found}")
    for name, low, high in zip(names, lows, highs, strict=True):
        if not -np.inf < low < high < np.inf:
            raise EnvError(f'{where}: {name!r} goes from {low:g} to {high:g}; give its actuator a ctrlrange, as "-1 1"')


def _dotted(function: Callable[..., Any]) -> str:
    """A function's name after its module's."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
