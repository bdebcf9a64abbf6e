"""The mazes against their text, cell by cell."""

import numpy as np
import pytest

from training.envs.building.mazes import LAYOUTS, LayoutError, Maze


@pytest.mark.parametrize(
    ("layout", "walls", "goals"),
    [
        ("u_maze", 18, 6),
        ("u_maze_eval", 18, 3),
        ("u4_maze", 24, 10),
        ("u4_maze_eval", 24, 4),
        ("u5_maze", 39, 16),
        ("u5_maze_eval", 39, 8),
        ("big_maze", 38, 25),
        ("big_maze_eval", 38, 9),
        ("hardest_maze", 62, 45),
    ],
)
def test_layouts_have_the_published_numbers_of_walls_and_goals(layout: str, walls: int, goals: int) -> None:
    maze = Maze(LAYOUTS[layout], cell=4.0)
    assert int(maze.walls.sum()) == walls
    assert len(maze.goals) == goals
    assert maze.starts.tolist() == [[8.0 if layout[1] in "4567" else 4.0, 4.0]]


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.endswith("_eval")])
def test_an_evaluation_layout_has_the_walls_of_its_training_layout_and_some_of_its_goals(layout: str) -> None:
    evaluated, trained = (Maze(LAYOUTS[name], cell=1.0) for name in (layout, layout.removesuffix("_eval")))
    np.testing.assert_array_equal(evaluated.walls, trained.walls)
    goals = [set(map(tuple, maze.goals.tolist())) for maze in (evaluated, trained)]
    assert goals[0] < goals[1]
    assert evaluated.starts.tolist() == trained.starts.tolist()


def test_a_corridor_is_walked_from_its_start_to_its_end() -> None:
    way = Maze(LAYOUTS["u4_maze"], cell=1.0).corridor
    assert way[:3].tolist() == [[2, 1], [1, 1], [1, 2]]
    assert way[-2:].tolist() == [[5, 1], [4, 1]]
    assert len(way) == 11
    with pytest.raises(LayoutError, match="forks at row 1, column 1"):
        _ = Maze(LAYOUTS["big_maze"], cell=1.0).corridor


def test_goals_of_the_u_maze_are_where_the_text_says() -> None:
    maze = Maze(LAYOUTS["u_maze"], cell=1.0)
    assert maze.goals.tolist() == [[1, 2], [1, 3], [2, 3], [3, 1], [3, 2], [3, 3]]
    assert maze.interior == ((0.5, 0.5), (3.5, 3.5))
    assert maze.obstacles == (((1.5, 0.5), (2.5, 2.5)),)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_obstacles_cover_exactly_the_inner_walls(layout: str) -> None:
    maze = Maze(LAYOUTS[layout], cell=2.0)
    rows, columns = maze.walls.shape
    for row in range(1, rows - 1):
        for column in range(1, columns - 1):
            x, y = 2.0 * row, 2.0 * column
            covered = any(low[0] < x < high[0] and low[1] < y < high[1] for low, high in maze.obstacles)
            assert covered == maze.walls[row, column], (row, column)
    area = sum((high[0] - low[0]) * (high[1] - low[1]) for low, high in maze.obstacles)
    assert area >= 4.0 * maze.walls[1:-1, 1:-1].sum()
    assert len(maze.obstacles) < maze.walls[1:-1, 1:-1].sum()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("### #S# ##", "the same length"),
        ("#### #Sx# #### ####", "got ['x']"),
        ("#### #Sg. ####", "border"),
        ("#### #gg# ####", "start"),
        ("#### #SS# ####", "goal"),
    ],
)
def test_broken_layouts_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(LayoutError, match=complaint.replace("[", r"\[")):
        Maze(text, cell=1.0)


def test_rectangles_may_overlap_to_stay_few() -> None:
    cross = Maze("####### #S.#..# #..#..# #.###.# #..#..# #..#.g# #######", cell=1.0)
    assert len(cross.obstacles) == 2
    assert np.isclose(sum((high[0] - low[0]) * (high[1] - low[1]) for low, high in cross.obstacles), 5 + 3)
