"""Pictures on disk: films as MP4 files, single ones as PNG files. A file is there whole, or as it was before."""

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
    """The rate of a film in real time, at most `MAX_FRAMES_PER_S`, and every how manyth control step is a frame."""
    stride = math.ceil(1 / (period_s * MAX_FRAMES_PER_S) - 1e-9)
    return 1 / (period_s * stride), stride


def write_video(path: Path, pictures: Iterable[np.ndarray], *, rate_hz: float) -> None:
    """Write `pictures`, each [height, width, 3] uint8 of even sizes, as an MP4 file that any player shows (H.264).

    Raises:
        OSError: it could not be written; the message says why.
    """
    coming = iter(pictures)
    first = next(coming)
    height, width, _ = first.shape
    with _whole(path) as part:
        # imageio's own writer forks, which JAX's threads do not survive unharmed
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{rate_hz:.9g}", "-i", "-"]
        # without "file:", a name that begins with a dash is an option, and one with a colon an address
        command += ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", f"file:{part}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as encoder:
            assert encoder.stdin is not None
            try:
                with contextlib.suppress(BrokenPipeError):  # the encoder has ended, and says below why
                    for picture in itertools.chain([first], coming):
                        encoder.stdin.write(picture.tobytes())
                _, said = encoder.communicate()
            except BaseException:
                encoder.kill()  # lest it go on writing a film that ends too early
                raise
        if encoder.returncode != 0:
            raise OSError(f"{path} could not be written: {' '.join(said.decode(errors='replace').split())}")


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write `picture: [height, width, 3]` uint8 as a PNG file.

    Raises:
        OSError: it could not be written.
    """
    with _whole(path) as part:
        imageio.imwrite(part, picture, extension=".png", optimize=True)


@contextlib.contextmanager
def _whole(path: Path) -> Generator[Path]:
    """Where to write what shall be at `path` once the context ends; an error in it, or Ctrl-C, leaves nothing there."""
    part = path.with_name(f"{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
