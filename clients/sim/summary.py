"""The results of a run: figures as JSON and as a table, and a picture of the paths."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rich.table
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.patches import Rectangle as Patch

from clients.sim.fleet import Episode
from training.envs.core.goal_env import GoalEnv

_PANEL_WIDTH_IN = 6.0


@dataclasses.dataclass(frozen=True)
class Summary:
    """The figures of one run."""

    environment: str
    policy: str
    versions: Mapping[str, int]  # that answered, with their numbers of requests, in the order of the first answers
    robots: int
    episodes: int
    stay: float  # share of the time since the first arrival spent at the goal, mean over the episodes, as eval/stay
    touched: float  # share of the episodes that were at their goal at least once, as eval/touched
    time_at_goal_steps: float  # control steps within the success radius, mean over the episodes
    time_at_goal_s: float
    diverged: int  # episodes whose simulated world became NaN or infinite; they count as not reached
    requests: int
    missed: int  # requests without a reply in time
    latency_p50_ms: float | None  # round trip seen by the robots, without the first of a connection; None: no other
    latency_p99_ms: float | None
    mean_batch_rows: float | None  # mean rows per batch of the server; None if no request was answered
    wall_s: float
    picture: str | None  # file that shows the paths

    def to_json(self) -> str:
        """Return the figures as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def to_table(self) -> rich.table.Table:
        """Return the figures as a table for people."""
        table = rich.table.Table(title=f"{self._answered_by()} on {self.environment}", show_header=False)
        table.add_row("stay, from the first arrival on", f"{self.stay:.3f} of the time")
        table.add_row("episodes that touched the goal", f"{self.touched:.3f} of {self.episodes}")
        table.add_row("time at goal", f"{self.time_at_goal_steps:.1f} steps ({self.time_at_goal_s:.1f} s)")
        table.add_row(
            "request latency p50 / p99", f"{_number(self.latency_p50_ms)} / {_number(self.latency_p99_ms)} ms"
        )
        table.add_row("mean batch size", f"{_number(self.mean_batch_rows)} rows")
        table.add_row("requests (missed)", f"{self.requests:,} ({self.missed:,})")
        if self.diverged:
            table.add_row("episodes that diverged in the simulator", f"{self.diverged}")
        if self.picture is not None:
            table.add_row("pictures", self.picture)
        return table

    def _answered_by(self) -> str:
        """Return the policy and its versions that answered; with several, each with its share of the requests."""
        answered = sum(self.versions.values())
        if not answered:
            return f"{self.policy}, which answered no request,"
        if len(self.versions) == 1:
            return f"{self.policy} version {next(iter(self.versions))}"
        parts = [f"{version} ({count / answered:.0%})" for version, count in self.versions.items()]
        return f"{self.policy} versions {', '.join(parts)}"


def summarize(
    env: GoalEnv,
    episodes: Sequence[Episode],
    *,
    policy: str,
    robots: int,
    wall_s: float,
    picture: Path | None,
) -> Summary:
    """Return the figures of `episodes`."""
    ticks = [tick for episode in episodes for tick in episode.ticks]
    missed = sum(episode.missed for episode in episodes)
    at_goal = float(np.mean([episode.time_at_goal for episode in episodes]))
    warm_s = [tick.round_trip_s for tick in ticks if not tick.is_warm_up]
    p50, p99 = np.percentile(warm_s, [50, 99]) * 1e3 if warm_s else (None, None)
    return Summary(
        environment=env.spec.name,
        policy=policy,
        versions=dict(Counter(tick.version for tick in ticks)),
        robots=robots,
        episodes=len(episodes),
        stay=float(np.mean([episode.stay for episode in episodes])),
        touched=float(np.mean([episode.touched for episode in episodes])),
        time_at_goal_steps=at_goal,
        time_at_goal_s=at_goal * env.control_period_s,
        diverged=sum(episode.diverged for episode in episodes),
        requests=len(ticks) + missed,
        missed=missed,
        latency_p50_ms=None if p50 is None else float(p50),
        latency_p99_ms=None if p99 is None else float(p99),
        # each row of a batch of n rows adds 1/n, so every batch adds 1
        mean_batch_rows=len(ticks) / sum(1 / tick.batch_rows for tick in ticks) if ticks else None,
        wall_s=wall_s,
        picture=None if picture is None else str(picture),
    )


def draw_paths(env: GoalEnv, episodes: Sequence[Episode], path: Path) -> Path:
    """Draw obstacles, paths, goals and their success radius, seen from above, into the PNG file `path`."""
    low, high = _bounds(env, episodes)
    width, height = high - low
    panel_height_in = np.clip(_PANEL_WIDTH_IN * height / width, 1.5, 1.5 * _PANEL_WIDTH_IN)
    figure = Figure(figsize=(_PANEL_WIDTH_IN, panel_height_in + 1), layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot, which would choose a backend for the whole process
    panel = figure.subplots()
    for corner, opposite in env.floor_plan():
        panel.add_patch(Patch(corner, opposite[0] - corner[0], opposite[1] - corner[1], color="0.25", linewidth=0))
    for touched, path_color, goal_color in ((True, "tab:blue", "tab:green"), (False, "tab:red", "tab:red")):
        chosen = [episode for episode in episodes if episode.touched is touched]
        for episode in chosen:
            panel.plot(*_from_above(episode.path).T, color=path_color, alpha=0.35, linewidth=1, zorder=2)
            # Outlines, because goals are often close together. A path that ends inside one is at its goal.
            outline = Circle(tuple(_from_above(episode.goal)), env.spec.success_radius, fill=False)
            outline.set(edgecolor=goal_color, alpha=0.4, linewidth=0.8, zorder=3)
            panel.add_patch(outline)
        if chosen:
            label = f"goal {'touched' if touched else 'missed'} ({len(chosen)})"
            goals = np.array([_from_above(episode.goal) for episode in chosen])
            panel.scatter(*goals.T, marker="*", s=70, color=goal_color, edgecolors="white", zorder=4, label=label)
    starts = _from_above(np.array([episode.path[0] for episode in episodes]))
    panel.scatter(*starts.T, s=12, color="black", zorder=4, label="start")
    unit = env.spec.goal_names[0].rpartition("[")[2].rstrip("]")
    radius = f"success radius, {env.spec.success_radius:g} {unit}"
    panel.scatter([], [], s=70, facecolors="none", edgecolors="0.5", label=radius)
    panel.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    xlabel, ylabel = (*env.spec.goal_names, "")[:2]
    panel.set(xlabel=xlabel, ylabel=ylabel, aspect="equal", title=f"{env.spec.name}: {len(episodes)} episodes")
    if len(env.spec.goal_names) == 1:
        panel.set_yticks([])
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return path


def _bounds(env: GoalEnv, episodes: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower left and the upper right corner, [2] each, of everything that `draw_paths` draws."""
    radius = env.spec.success_radius
    goals = np.array([_from_above(episode.goal) for episode in episodes])
    corners = [np.reshape(corner, (-1, 2)) for rectangle in env.floor_plan() for corner in rectangle]
    paths = [_from_above(episode.path) for episode in episodes]
    points = np.concatenate([goals - radius, goals + radius, *corners, *paths])
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.03 * (high - low).max()
    return low - margin, high + margin


def _from_above(goals: np.ndarray) -> np.ndarray:
    """Return the first two values of `goals: [..., goal_dim]`, [..., 2]. The second is 0 if goals have one value."""
    return goals[..., :2] if goals.shape[-1] > 1 else np.concatenate([goals, np.zeros_like(goals)], axis=-1)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
