"""Draw every environment of the registry, and the table in environments.md that shows them.

    .venv/bin/python docs/gallery.py

To be run again when an environment is added or looks different. Everything between the two marks in environments.md is
written here.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from training.envs import registry
from training.envs.rendering import camera, video

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "environments.md"
PICTURES = DOCS / "images" / "environments"
BEGIN, END = "<!-- gallery: written by docs/gallery.py -->", "<!-- end of gallery -->"
_LEFT_OUT = re.compile(r".*_eval|.*_u[2367]_maze")  # other goals between the same walls, and much the same walls
_COLUMNS = 3
_KEY = 1  # of the start and the goal that are drawn


def names() -> list[str]:
    """The environments that have a picture, in the registry's order."""
    return [name for name in registry.built_in().entries if not _LEFT_OUT.fullmatch(name)]


def table() -> str:
    """The pictures as a Markdown table, each above its name."""
    cells = [f"![{name}](images/environments/{name}.png)<br>`{name}`" for name in names()]
    cells += [""] * (-len(cells) % _COLUMNS)
    rows = [cells[first : first + _COLUMNS] for first in range(0, len(cells), _COLUMNS)]
    return "\n".join(f"| {' | '.join(row)} |" for row in ([""] * _COLUMNS, ["---"] * _COLUMNS, *rows))


def draw() -> Iterator[Path]:
    """Draw every environment at a start, with its goal; the files."""
    for name in names():
        env = registry.make(name)
        qpos, _, goal = env.sample_task(jax.random.key(_KEY))
        with camera.Camera(env, width=320, height=240) as eye:
            path = PICTURES / f"{name}.png"
            video.write_picture(path, eye.picture(np.asarray(qpos), np.asarray(goal)))
        yield path


def main() -> None:
    """Draw all, write the table, remove what is no longer shown."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    drawn = set(draw())
    for path in set(PICTURES.glob("*.png")) - drawn:
        path.unlink()
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")
    print(f"{len(drawn)} pictures, {sum(path.stat().st_size for path in drawn):,} bytes")


if __name__ == "__main__":
    main()
