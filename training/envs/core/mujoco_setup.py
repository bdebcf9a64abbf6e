"""Import MuJoCo and MJX for the whole package, before anything else in it does, and set them up.

* MuJoCo reads `MUJOCO_GL` on import and raises an error if the value names no OpenGL backend. Training draws nothing,
  so the variable is hidden during the import; `rendering.camera.make_ready` checks it when something is drawn.
* On its first import, MJX prints that its optional Warp backend is not installed. `physics.require_installed` raises
  an error if Warp is asked for and missing, so the line is suppressed.
* Long chains of bodies need a fusion barrier, see `fusion_barriers`.
"""

import contextlib
import io
import os
from collections.abc import Generator


@contextlib.contextmanager
def _without_variable(name: str) -> Generator[None]:
    """Hide an environment variable, and restore it afterwards."""
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


with _without_variable("MUJOCO_GL"), contextlib.redirect_stdout(io.StringIO()):
    from mujoco import mjx

    from training.envs.core import fusion_barriers

fusion_barriers.install()

__all__ = ["mjx"]
