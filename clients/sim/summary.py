"""What a drive comes to: a few figures as JSON and as a table, and a picture of the paths."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import rich.table
from matplotlib.patches import Rectangle as Patch

from clients.sim.fleet import Episode
from training.envs.core.goal_env import GoalEnv


@dataclasses.dataclass(frozen=True)
class Summary:
    """The figures of one drive."""

    environment: str
    policy: str
    version: str
    robots: int
    episodes: int
    share_reached: float  # episodes that were at their goal at least once
    time_at_goal_steps: float  # mean over the episodes
    time_at_goal_s: float
    requests: int
    missed: int  # requests that got no answer in time
    latency_p50_ms: float | None  # round trip as the robots saw it; None when no request was answered
    latency_p99_ms: float | None
    mean_batch_rows: float | None  # rows per batch computed by the server
    wall_s: float
    picture: str | None  # where the paths are drawn

    def to_json(self) -> str:
        """The figures as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def to_table(self) -> rich.table.Table:
        """The figures as a person wants to read them."""
        table = rich.table.Table(title=f"{self.policy} version {self.version} on {self.environment}", show_header=False)
        table.add_row("episodes that reached the goal", f"{self.share_reached:.3f} of {self.episodes}")
        table.add_row("time at goal", f"{self.time_at_goal_steps:.1f} steps ({self.time_at_goal_s:.1f} s)")
        table.add_row(
            "request latency p50 / p99", f"{_number(self.latency_p50_ms)} / {_number(self.latency_p99_ms)} ms"
        )
        table.add_row("mean batch size", f"{_number(self.mean_batch_rows)} rows")
        table.add_row("requests (missed)", f"{self.requests:,} ({self.missed:,})")
        if self.picture is not None:
            table.add_row("pictures", self.picture)
        return table


def summarise(
    env: GoalEnv,
    episodes: Sequence[Episode],
    *,
    policy: str,
    version: str,
    robots: int,
    wall_s: float,
    picture: Path | None,
) -> Summary:
    """Work the figures out of the episodes driven."""
    ticks = [tick for episode in episodes for tick in episode.ticks]
    missed = sum(episode.missed for episode in episodes)
    at_goal = float(np.mean([episode.time_at_goal for episode in episodes]))
    p50, p99 = np.percentile([tick.round_trip_s for tick in ticks], [50, 99]) * 1e3 if ticks else (None, None)
    return Summary(
        environment=env.spec.name,
        policy=policy,
        version=version,
        robots=robots,
        episodes=len(episodes),
        share_reached=float(np.mean([episode.reached for episode in episodes])),
        time_at_goal_steps=at_goal,
        time_at_goal_s=at_goal * env.control_period_s,
        requests=len(ticks) + missed,
        missed=missed,
        latency_p50_ms=None if p50 is None else float(p50),
        latency_p99_ms=None if p99 is None else float(p99),
        # every row tells how many shared its batch, so a batch of n rows adds up to n * 1/n = 1
        mean_batch_rows=len(ticks) / sum(1 / tick.batch_rows for tick in ticks) if ticks else None,
        wall_s=wall_s,
        picture=None if picture is None else str(picture),
    )


def draw_paths(env: GoalEnv, episodes: Sequence[Episode], path: Path) -> Path:
    """Draw the obstacles, the goals and the paths driven, seen from above, into the PNG file `path`."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panel = plt.subplots(figsize=(6, 6), layout="constrained")
    for low, high in env.floor_plan():
        panel.add_patch(Patch(low, high[0] - low[0], high[1] - low[1], color="0.25", linewidth=0))
    for episode in episodes:
        colour = "tab:blue" if episode.reached else "tab:red"
        panel.plot(*_from_above(episode.path).T, color=colour, alpha=0.35, linewidth=1, zorder=2)
    for reached, colour in ((True, "tab:green"), (False, "tab:red")):
        goals = [_from_above(episode.goal) for episode in episodes if episode.reached is reached]
        if goals:
            label = f"goal {'reached' if reached else 'missed'} ({len(goals)})"
            panel.scatter(*np.array(goals).T, marker="*", s=70, color=colour, edgecolors="white", zorder=3, label=label)
    starts = _from_above(np.array([episode.path[0] for episode in episodes]))
    panel.scatter(*starts.T, s=12, color="black", zorder=3, label="start")
    xlabel, ylabel = (*env.spec.goal_names, "")[:2]
    panel.set(xlabel=xlabel, ylabel=ylabel, aspect="equal", title=f"{env.spec.name}: {len(episodes)} episodes")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _from_above(goals: np.ndarray) -> np.ndarray:
    """The first two values of `goals: [..., goal_dim]`, [..., 2]; a goal of one value lies on a line."""
    return goals[..., :2] if goals.shape[-1] > 1 else np.concatenate([goals, np.zeros_like(goals)], axis=-1)


def _number(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.2f}"
