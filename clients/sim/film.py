"""An episode as a video and as a picture. What cannot be drawn is told in one line, and the drive counts as before."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rich.console
import rich.progress

from clients.sim.fleet import Episode
from training.envs import camera
from training.envs.base import GoalEnv


def show(
    env: GoalEnv, episode: Episode, *, video: Path | None, picture: Path | None, console: rich.console.Console
) -> None:
    """If `episode` kept its poses, write them into the MP4 file `video`, the last one into the PNG file `picture`."""
    if episode.poses is None:
        return
    try:
        for path in filter(None, (video, picture)):
            path.parent.mkdir(parents=True, exist_ok=True)
        with camera.Camera(env) as eye:
            if video is not None:
                rate_hz, stride = camera.frames_per_s(env.control_period_s)
                poses = episode.poses[::stride]
                camera.write_video(video, _frames(eye, poses, episode.goal, console=console), rate_hz=rate_hz)
                console.print(f"video in {video}")
            if picture is not None:
                camera.write_picture(picture, eye.picture(episode.poses[-1], episode.goal))
                console.print(f"picture in {picture}")
    except (camera.CannotDrawError, OSError) as error:
        print(f"no pictures: {error}", file=sys.stderr)


def _frames(
    eye: camera.Camera, poses: np.ndarray, goal: np.ndarray, *, console: rich.console.Console
) -> Iterator[np.ndarray]:
    """A picture of every one of `poses: [frames, nq]`."""
    track = rich.progress.track(
        poses, description="filming", console=console, disable=not console.is_terminal, transient=True
    )
    return (eye.picture(pose, goal) for pose in track)
