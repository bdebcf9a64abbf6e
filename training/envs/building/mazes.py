"""Mazes as text, and what follows from the text: starts, goals, corridors, and a few large boxes as walls.

Row i, column j of a layout is the cell centered at x = i * cell, y = j * cell. `#` is a wall, `S` the start, `g` a
goal, `b` a ball, `.` free. The layouts are those of the maze tasks of arXiv 2408.11052 and arXiv 2503.14858.
"""

import dataclasses

import jax
import numpy as np

from training.envs.core.goal_env import Rectangle

LAYOUTS = {
    "u_maze": """
        #####
        #Sgg#
        ###g#
        #ggg#
        #####
    """,
    "u_maze_eval": """
        #####
        #S..#
        ###.#
        #ggg#
        #####
    """,
    "u2_maze": """
        ######
        #Sggg#
        ####g#
        #gggg#
        ######
    """,
    "u2_maze_eval": """
        ######
        #S...#
        ####.#
        #gggg#
        ######
    """,
    "u3_maze": """
        #######
        #Sgggg#
        #####g#
        #ggggg#
        #######
    """,
    "u3_maze_eval": """
        #######
        #S....#
        #####.#
        #ggggg#
        #######
    """,
    "u4_maze": """
        #####
        #ggg#
        #S#g#
        ###g#
        #g#g#
        #ggg#
        #####
    """,
    "u4_maze_eval": """
        #####
        #...#
        #S#.#
        ###.#
        #g#.#
        #ggg#
        #####
    """,
    "u5_maze": """
        ########
        #gggggg#
        #S####g#
        ######g#
        #g####g#
        #gggggg#
        ########
    """,
    "u5_maze_eval": """
        ########
        #......#
        #S####.#
        ######.#
        #g####g#
        #gggggg#
        ########
    """,
    "u6_maze": """
        #######
        #ggggg#
        #S###g#
        #####g#
        #g###g#
        #ggggg#
        #######
    """,
    "u6_maze_eval": """
        #######
        #.....#
        #S###.#
        #####.#
        #g###g#
        #ggggg#
        #######
    """,
    "u7_maze": """
        ######
        #gggg#
        #S##g#
        ####g#
        #g##g#
        #gggg#
        ######
    """,
    "u7_maze_eval": """
        ######
        #....#
        #S##.#
        ####.#
        #g##g#
        #gggg#
        ######
    """,
    "big_maze": """
        ########
        #Sg##gg#
        #gg#ggg#
        ##ggg###
        #gg#ggg#
        #g#gg#g#
        #ggg#gg#
        ########
    """,
    "big_maze_eval": """
        ########
        #S.##gg#
        #..#..g#
        ##...###
        #..#...#
        #.#g.#g#
        #.gg#gg#
        ########
    """,
    "ball_maze": """
        #####
        #Sgb#
        ###g#
        #ggg#
        #####
    """,
    "hardest_maze": """
        ############
        #Sggg#ggggg#
        #g##g#g#g#g#
        #gggggg#ggg#
        #g####g###g#
        #gg#g#ggggg#
        ##g#g#g#g###
        #gg#ggg#ggg#
        ############
    """,
}


class LayoutError(ValueError):
    """A text that is not a closed maze with a start and a goal."""


@dataclasses.dataclass(frozen=True)
class Maze:
    """A maze text, and the size of a cell in meters.

    Raises:
        LayoutError: rows of different lengths, an unknown character, an open border, no start or no goal.
    """

    text: str
    cell: float

    def __post_init__(self) -> None:
        rows = self.text.split()
        if not rows or len({len(row) for row in rows}) != 1:
            raise LayoutError(f"the rows of a maze must have the same length, got {rows}")
        if unknown := set("".join(rows)) - set("#Sgb."):
            raise LayoutError(f"a maze consists of # S g b and . only, got {sorted(unknown)}")
        walls = self.walls
        if not (walls[0].all() and walls[-1].all() and walls[:, 0].all() and walls[:, -1].all()):
            raise LayoutError("the border of a maze must consist of #")
        for sign, meaning in (("S", "start"), ("g", "goal")):
            if sign not in self.text:
                raise LayoutError(f"a maze needs at least one {sign} (a {meaning})")

    @property
    def signs(self) -> np.ndarray:
        """The characters of the text, [rows, columns]."""
        return np.array([list(row) for row in self.text.split()])

    @property
    def walls(self) -> np.ndarray:
        """Whether each cell is a wall, [rows, columns] bool."""
        return self.signs == "#"

    @property
    def starts(self) -> np.ndarray:
        """Centers of the start cells in meters, [starts, 2]."""
        return self._centers("S")

    @property
    def goals(self) -> np.ndarray:
        """Centers of the goal cells in meters, [goals, 2]."""
        return self._centers("g")

    @property
    def balls(self) -> np.ndarray:
        """Centers of the balls' cells in meters, [balls, 2]."""
        return self._centers("b")

    @property
    def corridor(self) -> np.ndarray:
        """Centers of the cells of a maze that is a single corridor, from its start to its end, in meters, [cells, 2].

        Raises:
            LayoutError: the corridor forks, or does not begin at the start.
        """
        open_cells = {(int(row), int(column)) for row, column in np.argwhere(~self.walls)}
        here = next((int(row), int(column)) for row, column in np.argwhere(self.signs == "S"))
        way = [here]
        while ahead := [cell for cell in _neighbors(here) if cell in open_cells and cell not in way]:
            if len(ahead) > 1:
                raise LayoutError(f"the maze forks at row {here[0]}, column {here[1]}, so it is not a single corridor")
            (here,) = ahead
            way.append(here)
        return np.array(way) * self.cell

    @property
    def interior(self) -> Rectangle:
        """The floor inside the border, in meters."""
        rows, columns = self.walls.shape
        return self._rectangle(slice(1, rows - 1), slice(1, columns - 1))

    @property
    def obstacles(self) -> tuple[Rectangle, ...]:
        """A few rectangles that together cover exactly the wall cells inside the border, in meters.

        Greedy: repeatedly take the rectangle of wall cells that covers the most uncovered cells. Rectangles may
        overlap, so that fewer are needed.
        """
        walls = self.walls.copy()
        walls[[0, -1], :] = False
        walls[:, [0, -1]] = False
        candidates = list(_solid_rectangles(walls))
        left = walls.copy()
        chosen: list[Rectangle] = []
        while left.any():
            rows, columns = max(candidates, key=lambda box: int(left[box].sum()))
            left[rows, columns] = False
            chosen.append(self._rectangle(rows, columns))
        return tuple(chosen)

    def _centers(self, sign: str) -> np.ndarray:
        return np.argwhere(self.signs == sign) * self.cell

    def _rectangle(self, rows: slice, columns: slice) -> Rectangle:
        return Rectangle(
            low=((rows.start - 0.5) * self.cell, (columns.start - 0.5) * self.cell),
            high=((rows.stop - 0.5) * self.cell, (columns.stop - 0.5) * self.cell),
        )


def sample_near(key: jax.Array, centers: jax.Array, *, noise_m: float) -> jax.Array:
    """Return a random row of `centers: [n, 2]`, plus uniform noise of up to `noise_m` per axis."""
    choice_key, noise_key = jax.random.split(key)
    center = centers[jax.random.randint(choice_key, (), 0, len(centers))]
    return center + jax.random.uniform(noise_key, (2,), minval=-noise_m, maxval=noise_m)


def _neighbors(cell: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    row, column = cell
    return (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)


def _solid_rectangles(walls: np.ndarray) -> list[tuple[slice, slice]]:
    """Return every rectangle that consists of wall cells."""
    rows, columns = walls.shape
    spans = [
        (slice(top, bottom), slice(left, right))
        for top in range(rows)
        for bottom in range(top + 1, rows + 1)
        for left in range(columns)
        for right in range(left + 1, columns + 1)
    ]
    return [box for box in spans if walls[box].all()]
