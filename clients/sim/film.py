"""Write an episode as a video and as a picture.

A rendering failure is reported in one line and does not affect the results of the run.
"""

import contextlib
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import rich.console
import rich.progress

from clients.sim.fleet import Episode
from training.envs.core.goal_env import GoalEnv
from training.envs.rendering.camera import Camera, CannotDrawError
from training.envs.rendering.video import frames_per_s, write_picture, write_video


def show(
    env: GoalEnv, episode: Episode, *, video: Path | None, picture: Path | None, console: rich.console.Console
) -> None:
    """Write the poses of `episode` into the MP4 file `video`, and the last one into the PNG file `picture`.

    Does nothing if the episode has no poses.
    """
    poses = episode.poses
    if poses is None:
        return
    try:
        with Camera(env) as camera:
            if video is not None:
                rate_hz, stride = frames_per_s(env.control_period_s)
                frames = _frames(camera, poses[::stride], episode.goal, console=console)
                with _reporting("video", video, console=console):
                    write_video(video, frames, rate_hz=rate_hz)
            if picture is not None:
                with _reporting("picture", picture, console=console):
                    write_picture(picture, camera.picture(poses[-1], episode.goal))
    except CannotDrawError as error:
        print(f"no pictures: {error}", file=sys.stderr)


@contextlib.contextmanager
def _reporting(kind: str, path: Path, *, console: rich.console.Console) -> Generator[None]:
    """Report where the file is that the context writes, or why it could not be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
        console.print(f"{kind} in {path}")
    except OSError as error:
        print(f"no {kind}: {error}", file=sys.stderr)


def _frames(
    camera: Camera, poses: np.ndarray, goal: np.ndarray, *, console: rich.console.Console
) -> Iterator[np.ndarray]:
    """Return an iterator of the pictures of `poses: [frames, nq]`."""
    track = rich.progress.track(
        poses, description="rendering", console=console, disable=not console.is_terminal, transient=True
    )
    return (camera.picture(pose, goal) for pose in track)
