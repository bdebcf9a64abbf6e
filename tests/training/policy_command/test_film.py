"""The video of an evaluation, of a robot with physics."""

import dataclasses
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from policy import bundle
from tests.training.policy_command.conftest import SPEC, Command, publish
from training import evaluation
from training.policy_command import film


@pytest.mark.slow  # compiles the physics twice
def test_the_video_shows_the_first_episode(u_maze, tmp_path: Path, command: Command) -> None:
    spec = dataclasses.replace(SPEC, control_period_s=u_maze.control_period_s, actuator_kind=("torque", "torque"))
    path = publish(tmp_path, 1, spec=spec)
    code, found = command("evaluate", path, "--episodes", 1, "--seed", 3, "--video", tmp_path / "films" / "first.mp4")
    assert (code, found["video"]) == (0, str(tmp_path / "films" / "first.mp4"))
    assert imageio_ffmpeg.count_frames_and_secs(found["video"])[0] == found["episode_length"] + 1
    key, params = evaluation.evaluation_key(3, 0), bundle.read(path).params
    poses, goals = film.first_episode(u_maze, params, key=key, episodes=1, episode_length=found["episode_length"])
    distance = np.linalg.norm(poses[-1, :2] - goals[-1])  # a point's joints are its place
    assert distance == pytest.approx(found["metrics"]["eval/final_distance"], abs=1e-3)
