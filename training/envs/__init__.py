"""Goal-reaching environments on MuJoCo MJX: `registry.make(name)` gives one."""

import contextlib
import io
import os
from collections.abc import Generator


@contextlib.contextmanager
def _without_variable(name: str) -> Generator[None]:
    """Take an environment variable away, and give it back as it was."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


# MuJoCo reads MUJOCO_GL when it is imported, and ends with an error where that names nothing to draw with, though
# nothing is drawn yet: `camera.make_ready` judges it once something is. And on its first import MJX prints that its
# optional Warp backend is not installed. Asked for, Warp's absence is an error of its own; not asked for, it is not the
# user's concern.
with _without_variable("MUJOCO_GL"), contextlib.redirect_stdout(io.StringIO()):
    from mujoco import mjx

    from training.envs import long_chains

long_chains.keep_levels_apart()

__all__ = ["mjx"]
