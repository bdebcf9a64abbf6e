"""Command line of the simulated robots: connect, drive, tell."""

import dataclasses
import itertools
import math
import os
import sys
import time
from pathlib import Path

import jax
import rich.console
import rich.progress
import tyro

from clients.sim import film, fleet, summary
from kilolayer import KilolayerError, PolicyDescription
from training.envs import registry
from training.envs.core.goal_env import GoalEnv


class DriveError(Exception):
    """A drive that cannot begin; the message says what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriveConfig:
    """Let simulated robots reach their goals, every action fetched from a policy server.

    Every robot has a client of its own and sends one request per control period; the robots share one simulated clock.
    """

    env: str
    """Environment the robots live in; the policy must have been trained on it. MODULE:NAME for one of your own."""
    address: str = "127.0.0.1:50051"
    """The server, host:port."""
    policy: str = ""
    """Policy to ask for; empty for the server's default."""
    robots: int = 32
    """Robots that drive at once."""
    episodes: int = 128
    """Episodes in all."""
    episode_length: int | None = None
    """Control steps per episode; left out, the environment's own."""
    timeout_s: float = 1.0
    """Seconds after which a robot gives up on an answer and coasts for a step."""
    wait_s: float = 30.0
    """Seconds to wait for the server at the start."""
    seed: int = 0
    """Starts and goals follow from it."""
    out: Path | None = None
    """Folder for summary.json and paths.png; left out, only the table is shown."""
    video: Path | None = None
    """MP4 file to show the first robot's first episode in; left out, none is made."""
    picture: Path | None = None
    """PNG file to show the end of that episode in; left out, none is made."""
    min_share: float = 0.0
    """Exit with an error if a smaller share of the episodes reached the goal."""

    def __post_init__(self) -> None:
        for field in ("robots", "episodes", "timeout_s", "wait_s"):
            if not 0 < getattr(self, field) < math.inf:
                default = type(self).__dataclass_fields__[field].default
                raise DriveError(f"{field} must be a positive number, not {getattr(self, field)}; try {default}")
        if self.episode_length is not None and self.episode_length < 1:
            raise DriveError(f"episode_length must be at least 1, not {self.episode_length}")
        if not 0 <= self.min_share <= 1:
            raise DriveError(f"min_share must lie in [0, 1], not {self.min_share}; try 0.9")
        for field, ending in (("video", ".mp4"), ("picture", ".png")):
            path: Path | None = getattr(self, field)
            if path is not None and path.suffix.lower() != ending:
                raise DriveError(f"{field} must be a file that ends in {ending}, not {path}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    console = rich.console.Console()
    try:
        config = tyro.cli(DriveConfig, args=arguments, prog="python clients/sim/run.py")
    except DriveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        result = run(config, console=console)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.stdout.flush()
        os._exit(130)  # a compilation under way cannot be stopped, and must not find the interpreter gone
    except (DriveError, ImportError, KilolayerError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if result.share_reached < config.min_share:
        print(f"error: only {result.share_reached:.3f} of the episodes reached the goal", file=sys.stderr)
        return 1
    return 0


def run(config: DriveConfig, *, console: rich.console.Console) -> summary.Summary:
    """Drive as `config` says, show the figures, then write the files: what goes wrong with one costs no figure.

    Raises:
        DriveError: the served policy does not fit the environment, or a file could not be written afterwards.
        UnknownNameError, EnvError: there is no such environment, or it cannot be built.
        KilolayerError: the server cannot be reached or refuses.
        OSError: a file of the folder `out` could not be written.
    """
    _require_places(config)
    env = registry.make(config.env)
    clients = fleet.connect(config.address, robots=config.robots, policy=config.policy, timeout_s=config.timeout_s)
    try:
        served = clients[0].wait_until_ready(config.wait_s)
        _require_fit(env, served)
        began = time.monotonic()
        episodes = _drive_with_progress(config, env, clients, console=console)
        wall_s = time.monotonic() - began
    finally:
        for client in clients:
            client.close()
    result = summary.summarise(
        env,
        episodes,
        policy=served.name,
        version=served.version,
        robots=config.robots,
        wall_s=wall_s,
        picture=config.out and config.out / "paths.png",
    )
    console.print(result.to_table())
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "summary.json").write_text(result.to_json())
        summary.draw_paths(env, episodes, config.out / "paths.png")
    film.show(env, episodes[0], video=config.video, picture=config.picture, console=console)
    return result


def _require_places(config: DriveConfig) -> None:
    """Refuse a drive whose files could not be written after it. Nothing is made yet."""
    out = config.out and config.out / "summary.json"
    for field, file in (("out", out), ("video", config.video), ("picture", config.picture)):
        if file is None:
            continue
        nearest = next(folder for folder in file.absolute().parents if folder.exists())
        if file.is_dir() or not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
            reason = "that is a folder" if file.is_dir() else f"{nearest} is no folder that can be written to"
            raise DriveError(f"{field}: {file} could not be written, {reason}; name another place")


def _drive_with_progress(
    config: DriveConfig, env: GoalEnv, clients: list[fleet.PolicyClient], *, console: rich.console.Console
) -> list[fleet.Episode]:
    episode_length = config.episode_length or env.spec.episode_length
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("driving", total=config.episodes * episode_length)
        drive = fleet.drive(
            env,
            clients,
            key=jax.random.key(config.seed),
            episodes=config.episodes,
            episode_length=episode_length,
            keep_poses=config.video is not None or config.picture is not None,
            on_step=lambda robots: progress.advance(task, robots),
        )
        return list(drive)


def _require_fit(env: GoalEnv, served: PolicyDescription) -> None:
    if served.environment != env.spec.name:
        raise DriveError(
            f"the policy was trained on {served.environment}, not {env.spec.name}; drive with --env "
            f"{served.environment}, or name another of the server's policies with --policy"
        )
    for what in ("state_names", "goal_names", "action_names"):  # a robot of one's own may have changed since
        for theirs, ours in itertools.zip_longest(getattr(served, what), getattr(env.spec, what), fillvalue="nothing"):
            if theirs != ours:
                raise DriveError(
                    f"the policy's {what.replace('_', ' ')} hold {theirs!r} where {env.spec.name} has {ours!r} now; "
                    "train it again"
                )


if __name__ == "__main__":
    sys.exit(main())
