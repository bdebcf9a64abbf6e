"""Goal-reaching environments on MuJoCo MJX: `registry.make(name)` gives one."""

import contextlib
import io

# On its first import MJX prints that its optional Warp backend is not installed. Asked for, Warp's absence is an error
# of its own; not asked for, it is not the user's concern.
with contextlib.redirect_stdout(io.StringIO()):
    from mujoco import mjx

from training.envs import long_chains

long_chains.keep_levels_apart()

__all__ = ["mjx"]
