"""Draw every environment of the registry, and write the table in environments.md that shows the pictures.

Run it again, with .venv/bin/python docs/gallery.py, when an environment is added or looks different. It writes
everything between the two marks in environments.md.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from training.envs import registry
from training.envs.rendering import camera, video

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "environments.md"
PICTURES = DOCS / "images" / "environments"
BEGIN, END = "<!-- gallery: written by docs/gallery.py -->", "<!-- end of gallery -->"
_LEFT_OUT = re.compile(r".*_eval|.*_u[2367]_maze")  # the same walls with other goals, and similar walls
_COLUMNS = 3
_KEY = 1  # draws start and goal
_KEYS = {"pusher_hard": 5, "reacher": 2}  # another one where the first hides something


def names() -> list[str]:
    """Return the environments that have a picture, in the order of the registry."""
    return [name for name in registry.built_in().entries if not _LEFT_OUT.fullmatch(name)]


def table() -> str:
    """Return the pictures as a Markdown table, each above its name."""
    cells = [f"![{name}](images/environments/{name}.png)<br>`{name}`" for name in names()]
    cells += [""] * (-len(cells) % _COLUMNS)
    rows = [cells[first : first + _COLUMNS] for first in range(0, len(cells), _COLUMNS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in ([""] * _COLUMNS, ["---"] * _COLUMNS, *rows))


def draw() -> Iterator[Path]:
    """Draw every environment at a start, with its goal; yield the files."""
    for name in names():
        env = registry.make(name)
        qpos, _, goal = env.sample_task(jax.random.key(_KEYS.get(name, _KEY)))
        with camera.Camera(env, width=320, height=240) as eye:
            path = PICTURES / f"{name}.png"
            video.write_picture(path, eye.picture(np.asarray(qpos), np.asarray(goal)))
        yield path


def main(arguments: Sequence[str]) -> None:
    """Draw all pictures, write the table, and remove old pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.parse_args(arguments)
    PICTURES.mkdir(parents=True, exist_ok=True)
    drawn = set(draw())
    for path in set(PICTURES.glob("*.png")) - drawn:
        path.unlink()
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")
    print(f"{len(drawn)} pictures, {sum(path.stat().st_size for path in drawn):,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
