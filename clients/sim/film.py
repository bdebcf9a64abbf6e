"""An episode as a video and as a picture. What cannot be drawn is told in one line, and the drive counts as before."""

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
    """If `episode` kept its poses, write them into the MP4 file `video`, the last one into the PNG file `picture`."""
    poses = episode.poses
    if poses is None:
        return
    try:
        with Camera(env) as eye:
            if video is not None:
                rate_hz, stride = frames_per_s(env.control_period_s)
                frames = _frames(eye, poses[::stride], episode.goal, console=console)
                with _telling("video", video, console=console):
                    write_video(video, frames, rate_hz=rate_hz)
            if picture is not None:
                with _telling("picture", picture, console=console):
                    write_picture(picture, eye.picture(poses[-1], episode.goal))
    except CannotDrawError as error:
        print(f"no pictures: {error}", file=sys.stderr)


@contextlib.contextmanager
def _telling(kind: str, path: Path, *, console: rich.console.Console) -> Generator[None]:
    """Say where the file is that the context writes, or why it could not be written: the other one still may be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
        console.print(f"{kind} in {path}")
    except OSError as error:
        print(f"no {kind}: {error}", file=sys.stderr)


def _frames(eye: Camera, poses: np.ndarray, goal: np.ndarray, *, console: rich.console.Console) -> Iterator[np.ndarray]:
    """A picture of every one of `poses: [frames, nq]`."""
    track = rich.progress.track(
        poses, description="filming", console=console, disable=not console.is_terminal, transient=True
    )
    return (eye.picture(pose, goal) for pose in track)
