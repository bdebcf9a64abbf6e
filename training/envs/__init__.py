"""Goal-reaching environments on MuJoCo MJX. `make(name)` builds one; `register` adds one of your own."""

from training.envs.core import mujoco_setup  # noqa: F401  # pyright: ignore[reportUnusedImport]  # before MuJoCo

# isort: split
from training.envs.core.goal_env import GoalEnv
from training.envs.custom.mjcf_env import Box, MjcfEnv
from training.envs.registry import make, register

__all__ = ["Box", "GoalEnv", "MjcfEnv", "make", "register"]
