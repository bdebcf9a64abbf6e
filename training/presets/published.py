"""Published figures: time at goal by environment and depth, of the experiments that two presets repeat.

The two experiments differ in budgets and in the layouts that they evaluate on, so their figures never stand in one
column. Both simulated ants and humanoids with brax's spring pipeline, and kept each world's first start and goal.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Published(NamedTuple):
    """The figures of one environment."""

    title: str  # as the source names the environment
    source: str
    time_at_goal: Mapping[int, float]  # control steps of 1000 by depth, mean over seeds


_DEPTHS = (4, 8, 16, 32, 64)
_PAPER = "arXiv 2503.14858, figure 1"
_LAYOUTS = "CRL in the tables of arXiv 2609.36238"


def _rows(source: str, rows: Mapping[str, tuple[str, tuple[float, ...]]]) -> Mapping[str, Published]:
    return MappingProxyType(
        {
            name: Published(title, source, MappingProxyType(dict(zip(_DEPTHS, figures, strict=True))))
            for name, (title, figures) in rows.items()
        }
    )


PUBLISHED: Mapping[str, Mapping[str, Published]] = MappingProxyType(  # by preset, then by environment
    {
        "paper": _rows(
            _PAPER,
            {
                "humanoid": ("Humanoid", (12.6, 101, 522, 639, 649)),
                "ant_big_maze": ("Ant Big Maze", (60.7, 320, 424, 439, 441)),
                "ant_u4_maze": ("Ant U4-Maze", (11.4, 107, 138, 238, 286)),
                "ant_u5_maze": ("Ant U5-Maze", (1.0, 14.8, 20, 111, 97.5)),
                "ant_hardest_maze": ("Ant Hardest Maze", (215, 307, 392, 392, 387)),
                "arm_push_easy": ("Arm Push Easy", (308, 669, 805, 848, 762)),
                "arm_push_hard": ("Arm Push Hard", (171, 312, 419, 455, 410)),
                "arm_binpick_hard": ("Arm Binpick Hard", (38, 66, 151, 221, 219)),
                "humanoid_u_maze": ("Humanoid U-Maze", (3.2, 7.2, 6.9, 11.5, 159)),
                "humanoid_big_maze": ("Humanoid Big Maze", (0.06, 0.8, 26, 23, 59)),
            },
        ),
        "training_layouts": _rows(
            _LAYOUTS,
            {
                "ant_u4_maze": ("Ant U4", (383, 517, 588, 632, 565)),
                "ant_big_maze": ("Ant Big", (421, 578, 612, 657, 637)),
                "ant_hardest_maze": ("Ant Hardest", (192, 264, 319, 334, 323)),
                "ant_u5_maze": ("Ant U5", (246, 296, 343, 386, 293)),
                "humanoid": ("Humanoid", (23, 716, 713, 727, 750)),
                "humanoid_u_maze": ("Humanoid U", (3.8, 21, 9, 21, 21)),
                "humanoid_big_maze": ("Humanoid Big", (0.1, 1.2, 3.8, 4.4, 4.1)),
            },
        ),
    }
)
