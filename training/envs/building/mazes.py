"""Mazes as text, and what follows from the text: starts, goals, ways, and few large wall boxes.

Row i, column j of a layout is the cell centred at x = i * cell, y = j * cell. `#` is wall, `S` the start, `g` a goal,
`b` a ball, `.` free. Layouts as published for the maze tasks of arXiv 2408.11052 and arXiv 2503.14858.
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
    """A maze text that does not describe a closed maze with a start and a goal."""


@dataclasses.dataclass(frozen=True)
class Maze:
    """A maze text with the size of a cell in metres.

    Raises:
        LayoutError: rows of unequal length, an unknown sign, an open border, no start or no goal.
    """

    text: str
    cell: float

    def __post_init__(self) -> None:
        rows = self.text.split()
        if not rows or len({len(row) for row in rows}) != 1:
            raise LayoutError(f"every row of a maze must be equally long: {rows}")
        if unknown := set("".join(rows)) - set("#Sgb."):
            raise LayoutError(f"a maze is made of # S g b and . only, not {sorted(unknown)}")
        walls = self.walls
        if not (walls[0].all() and walls[-1].all() and walls[:, 0].all() and walls[:, -1].all()):
            raise LayoutError("the border of a maze must be # all around")
        for sign, meaning in (("S", "start"), ("g", "goal")):
            if sign not in self.text:
                raise LayoutError(f"a maze needs at least one {sign}, a {meaning}")

    @property
    def signs(self) -> np.ndarray:
        """The text as an array of one sign per cell, [rows, columns]."""
        return np.array([list(row) for row in self.text.split()])

    @property
    def walls(self) -> np.ndarray:
        """Which cells are wall, [rows, columns] bool."""
        return self.signs == "#"

    @property
    def starts(self) -> np.ndarray:
        """Centres of the start cells in metres, [starts, 2]."""
        return self._centres("S")

    @property
    def goals(self) -> np.ndarray:
        """Centres of the goal cells in metres, [goals, 2]."""
        return self._centres("g")

    @property
    def balls(self) -> np.ndarray:
        """Centres of the balls' cells in metres, [balls, 2]."""
        return self._centres("b")

    @property
    def corridor(self) -> np.ndarray:
        """Centres of the cells along a maze that is one corridor, from its start to its end in metres, [cells, 2].

        Raises:
            LayoutError: the way forks, or the start is not at an end of it.
        """
        open_cells = {(int(row), int(column)) for row, column in np.argwhere(~self.walls)}
        here = next((int(row), int(column)) for row, column in np.argwhere(self.signs == "S"))
        way = [here]
        while ahead := [cell for cell in _neighbours(here) if cell in open_cells and cell not in way]:
            if len(ahead) > 1:
                raise LayoutError(f"the maze forks at row {here[0]}, column {here[1]}, so it is not one corridor")
            (here,) = ahead
            way.append(here)
        return np.array(way) * self.cell

    @property
    def interior(self) -> Rectangle:
        """The floor within the border, in metres."""
        rows, columns = self.walls.shape
        return self._rectangle(slice(1, rows - 1), slice(1, columns - 1))

    @property
    def obstacles(self) -> tuple[Rectangle, ...]:
        """Few rectangles that together cover exactly the wall cells within the border, in metres.

        Greedy: the rectangle of wall cells that covers the most cells not yet covered, again and again. Rectangles may
        overlap, which costs nothing and needs fewer of them.
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

    def _centres(self, sign: str) -> np.ndarray:
        return np.argwhere(self.signs == sign) * self.cell

    def _rectangle(self, rows: slice, columns: slice) -> Rectangle:
        return Rectangle(
            low=((rows.start - 0.5) * self.cell, (columns.start - 0.5) * self.cell),
            high=((rows.stop - 0.5) * self.cell, (columns.stop - 0.5) * self.cell),
        )


def sample_near(key: jax.Array, centres: jax.Array, *, noise_m: float) -> jax.Array:
    """A uniformly chosen row of `centres: [n, 2]`, moved by uniform noise of up to `noise_m` per axis."""
    choice_key, noise_key = jax.random.split(key)
    centre = centres[jax.random.randint(choice_key, (), 0, len(centres))]
    return centre + jax.random.uniform(noise_key, (2,), minval=-noise_m, maxval=noise_m)


def _neighbours(cell: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    row, column = cell
    return (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)


def _solid_rectangles(walls: np.ndarray) -> list[tuple[slice, slice]]:
    """Every rectangle of cells that is wall throughout."""
    rows, columns = walls.shape
    spans = [
        (slice(top, bottom), slice(left, right))
        for top in range(rows)
        for bottom in range(top + 1, rows + 1)
        for left in range(columns)
        for right in range(left + 1, columns + 1)
    ]
    return [box for box in spans if walls[box].all()]
