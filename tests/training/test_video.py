"""Films and pictures as files: what is in them, and what is left where one could not be written to its end."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
import pytest

from training.envs.rendering import video

FRAME = np.zeros((32, 48, 3), np.uint8)


@pytest.mark.parametrize(
    ("period_s", "rate_hz", "stride"), [(0.16, 6.25, 1), (0.05, 20, 1), (1 / 60, 60, 1), (0.015, 100 / 3, 2)]
)
def test_a_film_runs_in_real_time_at_60_frames_at_most(period_s: float, rate_hz: float, stride: int) -> None:
    assert video.frames_per_s(period_s) == (pytest.approx(rate_hz), stride)


def test_a_video_has_every_picture_at_the_rate_asked_for(tmp_path: Path) -> None:
    pictures = [np.full((32, 48, 3), gray, np.uint8) for gray in range(0, 250, 25)]
    path = tmp_path / "film.mp4"
    video.write_video(path, pictures, rate_hz=12.5)
    assert imageio_ffmpeg.count_frames_and_secs(str(path)) == (10, pytest.approx(0.8))
    said = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", path], capture_output=True, text=True, check=False)
    assert "h264" in said.stderr
    assert "yuv420p" in said.stderr
    assert "48x32" in said.stderr


def test_a_video_that_cannot_be_written_says_so_in_one_line(tmp_path: Path) -> None:
    pictures = [np.zeros((480, 640, 3), np.uint8)] * 5
    with pytest.raises(OSError, match=r"film\.mp4 could not be written: .*No such file") as caught:
        video.write_video(tmp_path / "no folder" / "film.mp4", pictures, rate_hz=10)
    assert "\n" not in str(caught.value)


def test_a_picture_is_written_as_it_is(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    video.write_picture(tmp_path / "one.png", picture)
    np.testing.assert_array_equal(imageio.imread(tmp_path / "one.png"), picture)


@pytest.mark.parametrize("name", ["-x.mp4", "a:b.mp4", "UPPER.MP4", "100% %d.mp4"])
def test_a_file_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    video.write_video(Path(name), [FRAME] * 3, rate_hz=10)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ZeroDivisionError])
def test_a_film_that_is_interrupted_leaves_the_earlier_one(tmp_path: Path, interruption: type[BaseException]) -> None:
    path = tmp_path / "film.mp4"
    path.write_text("the earlier one")

    def frames() -> Iterator[np.ndarray]:
        yield from [FRAME] * 5
        raise interruption

    with pytest.raises(interruption):
        video.write_video(path, frames(), rate_hz=10)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["the earlier one"]


def test_a_film_that_cannot_be_encoded_leaves_nothing(tmp_path: Path) -> None:
    odd = np.zeros((31, 47, 3), np.uint8)
    with pytest.raises(OSError, match=r"film\.mp4 could not be written: .*not divisible by 2"):
        video.write_video(tmp_path / "film.mp4", [odd] * 3, rate_hz=10)
    assert not list(tmp_path.iterdir())
