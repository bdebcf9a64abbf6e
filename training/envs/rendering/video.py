"""Write films as MP4 files and pictures as PNG files. A file is written completely, or not changed at all."""

import contextlib
import itertools
import math
import subprocess
from collections.abc import Generator, Iterable
from pathlib import Path

import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np

MAX_FRAMES_PER_S = 60


def frames_per_s(period_s: float) -> tuple[float, int]:
    """Return the frame rate of a film in real time, up to `MAX_FRAMES_PER_S`, and the stride in control steps."""
    stride = math.ceil(1 / (period_s * MAX_FRAMES_PER_S) - 1e-9)
    return 1 / (period_s * stride), stride


def write_video(path: Path, pictures: Iterable[np.ndarray], *, rate_hz: float) -> None:
    """Write `pictures`, each [height, width, 3] uint8 of even sizes, as an MP4 file (H.264).

    Raises:
        OSError: the file could not be written. The message says why.
    """
    coming = iter(pictures)
    first = next(coming)
    height, width, _ = first.shape
    with _whole(path) as part:
        # imageio's own writer forks, which is not safe with JAX's threads
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{rate_hz:.9g}", "-i", "-"]
        # without "file:", a name with a leading dash is an option, and a name with a colon is an address
        command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", f"file:{part}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as encoder:
            assert encoder.stdin is not None
            try:
                with contextlib.suppress(BrokenPipeError):  # the encoder has ended; its error is read below
                    for picture in itertools.chain([first], coming):
                        encoder.stdin.write(picture.tobytes())
                _, said = encoder.communicate()
            except BaseException:
                encoder.kill()  # otherwise it would write an incomplete film
                raise
        if encoder.returncode != 0:
            raise OSError(f"{path} could not be written: {' '.join(said.decode(errors='replace').split())}")


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write `picture: [height, width, 3]` uint8 as a PNG file.

    Raises:
        OSError: the file could not be written.
    """
    with _whole(path) as part:
        imageio.imwrite(part, picture, extension=".png", optimize=True)


@contextlib.contextmanager
def _whole(path: Path) -> Generator[Path]:
    """Yield a path to write to. It becomes `path` at the end, or is deleted after an error or Ctrl-C."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
