"""Command line of the simulated robots: connect to a server or open an export, run episodes, report the results."""

import dataclasses
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

try:
    import jax
    import rich.console
    import rich.progress
    import tyro

    from clients.sim import film, fleet, summary
    from clients.sim.outage import Outage
    from kilolayer import KilolayerError, LocalPolicy, PolicyClient, PolicyDescription
    from policy import jax_settings
    from policy.command_line import local_path
    from training.envs import registry
    from training.envs.core.goal_env import GoalEnv
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(
        f"error: {error}: run make install and use .venv/bin/python, or install with"
        " pip install -e clients/python -e '.[train]'"
    )

# In --help, tyro would write `{None}|INT` and `(default: None)`.
_OPTIONAL_INT = tyro.conf.arg(metavar="INT", help_behavior_hint="(optional)")
_OPTIONAL_PATH = tyro.conf.arg(metavar="PATH", help_behavior_hint="(optional)")


class DriveError(Exception):
    """The run cannot begin. The message says what to do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriveConfig:
    """Run simulated robots that get every action from a policy server, or with --local from a policy in this process.

    Each robot has its own client of the server. It executes all actions of a reply, one per control period, and then
    sends the next request; most policies give one action. All robots share one simulated clock. Prints how well the
    robots reach their goals and stay there, and the latency of the requests.
    """

    env: str
    """Environment to run, the one that the policy was trained on. MODULE:NAME selects one of your own."""
    address: str = "127.0.0.1:50051"
    """Address of the server, HOST:PORT or unix:PATH; several as IP:PORT,IP:PORT. KILOLAYER_TLS_CA and
    KILOLAYER_TOKEN_FILE, and the client's other variables, secure the connection."""
    policy: str = ""
    """Name of the policy. Default: the server's default policy."""
    local: Annotated[Path | None, _OPTIONAL_PATH] = None
    """Folder of an exported policy, to compute its actions in this process without a server. All robots share it."""
    robots: int = 32
    """Number of robots that run at the same time."""
    episodes: int = 128
    """Total number of episodes."""
    episode_length: Annotated[int | None, _OPTIONAL_INT] = None
    """Control steps per episode. Default: the episode length of the environment."""
    timeout_s: float = 1.0
    """Timeout of a request in seconds. A robot without a reply in time applies the middle of its action range for one
    control period."""
    wait_for_server_s: float = 30.0
    """How long to wait for the server to become ready, in seconds."""
    seed: int = 0
    """Random seed for start states and goals."""
    out: Annotated[Path | None, _OPTIONAL_PATH] = None
    """Folder to write summary.json and paths.png into. Default: write neither."""
    video: Annotated[Path | None, _OPTIONAL_PATH] = None
    """MP4 file to write: the first episode of the first robot. Default: no video."""
    picture: Annotated[Path | None, _OPTIONAL_PATH] = None
    """PNG file to write: the last step of that episode. Default: no picture."""
    min_stay_rate: float = 0.0
    """Exit with status 1 if the stay is lower: the share of the time since the first arrival spent at the goal."""

    def __post_init__(self) -> None:
        for field in ("robots", "episodes", "timeout_s", "wait_for_server_s"):
            if not 0 < getattr(self, field) < math.inf:
                default = type(self).__dataclass_fields__[field].default
                raise DriveError(f"{field} must be a positive number, got {getattr(self, field)}; try {default}")
        if self.episode_length is not None and self.episode_length < 1:
            raise DriveError(f"episode_length must be at least 1, got {self.episode_length}")
        if not 0 <= self.min_stay_rate <= 1:
            raise DriveError(f"min_stay_rate must be from 0 to 1, got {self.min_stay_rate}; try 0.9")
        if self.local is not None and self.policy:
            raise DriveError("policy is the name of a server's policy, and local needs no server; pass one of the two")
        for field, ending in (("local", ""), ("out", ""), ("video", ".mp4"), ("picture", ".png")):
            path: Path | None = getattr(self, field)
            if path is None:
                continue
            try:
                object.__setattr__(self, field, local_path(path, name=field))
            except ValueError as error:
                raise DriveError(str(error)) from error
            if ending and path.suffix.lower() != ending:
                raise DriveError(f"{field} must be a file name that ends in {ending}, got {path}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    console = rich.console.Console()
    try:
        config = tyro.cli(DriveConfig, args=arguments, prog="python clients/sim/run.py")
    except DriveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if warning := jax_settings.apply():
        print(f"warning: {warning}", file=sys.stderr)
    if problem := jax_settings.device_problem():
        print(f"error: {problem}", file=sys.stderr)
        return 1
    try:
        result = run(config, console=console)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.stdout.flush()
        os._exit(130)  # a running compilation cannot be stopped, and would crash when the interpreter exits
    except (DriveError, ImportError, KilolayerError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not result.versions:
        print("error: no request was answered; see the server's log, or raise --timeout-s", file=sys.stderr)
        return 1
    if result.stay < config.min_stay_rate:
        print(
            f"error: the stay at the goals is {result.stay:.3f}, below min_stay_rate {config.min_stay_rate:g}",
            file=sys.stderr,
        )
        return 1
    return 0


def run(
    config: DriveConfig, *, console: rich.console.Console, wall_clock_ns: Callable[[], int] = time.time_ns
) -> summary.Summary:
    """Run the episodes of `config`, print the results, then write the files.

    Args:
        config: what to run.
        console: for the progress and the results.
        wall_clock_ns: Unix time in ns, so that the numbers of episodes are above those of earlier runs.

    Raises:
        DriveError: the policy does not fit the environment, or an output file cannot be written.
        UnknownNameError, EnvError: there is no such environment, or it cannot be built.
        KilolayerError: the server is not ready within `wait_for_server_s`, or refuses a request as wrong.
        InvalidExport, ImportError: the folder `local` is no exported policy, or lacks the client's extra `local`.
        OSError: writing into the folder `out` failed.
    """
    _require_writable(config)
    env = registry.make(config.env)
    clients = _clients(config)
    try:
        served = clients[0].wait_until_ready(config.wait_for_server_s)
        _require_fit(env, served)
        place = f"in {config.local}" if config.local else f"at {config.address}"
        _say(f"{served.name} is ready {place}; compiling {config.env}, which may take a minute")
        began = time.monotonic()
        first = wall_clock_ns() // 10**6
        episodes = _drive_with_progress(config, env, clients, console=console, first_number=first)
        wall_s = time.monotonic() - began
    finally:
        for client in clients:
            client.close()
    result = summary.summarize(
        env,
        episodes,
        policy=served.name,
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


def _clients(config: DriveConfig) -> Sequence[PolicyClient] | Sequence[LocalPolicy]:
    """Return what each robot asks: a client of its own, or the one local policy that all share."""
    if config.local is not None:
        return [LocalPolicy(config.local, timeout_s=config.timeout_s)] * config.robots
    return fleet.connect(config.address, robots=config.robots, policy=config.policy, timeout_s=config.timeout_s)


def _require_writable(config: DriveConfig) -> None:
    """Raise DriveError if an output file could not be written after the run. Creates nothing."""
    out = config.out and config.out / "summary.json"
    for field, file in (("out", out), ("video", config.video), ("picture", config.picture)):
        if file is None:
            continue
        nearest = next(folder for folder in file.absolute().parents if folder.exists())
        if file.is_dir() or not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
            reason = "it is a folder" if file.is_dir() else f"{nearest} is not a writable folder"
            raise DriveError(f"{field}: cannot write {file}: {reason}; choose another path")


def _drive_with_progress(
    config: DriveConfig,
    env: GoalEnv,
    clients: Sequence[PolicyClient] | Sequence[LocalPolicy],
    *,
    console: rich.console.Console,
    first_number: int,
) -> list[fleet.Episode]:
    episode_length = config.episode_length or env.spec.episode_length
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("running", total=config.episodes * episode_length)
        drive = fleet.drive(
            env,
            clients,
            key=jax.random.key(config.seed),
            episodes=config.episodes,
            episode_length=episode_length,
            keep_poses=config.video is not None or config.picture is not None,
            on_step=lambda robots: progress.advance(task, robots),
            outage=Outage(say=_say),
        )
        episodes: list[fleet.Episode] = []
        unreported, sent = 0, True
        for number, episode in enumerate(drive):
            episodes.append(episode)
            round_number, robot = divmod(number, len(clients))
            client = clients[robot]
            if isinstance(client, LocalPolicy):
                continue  # there is no server to count the episodes
            # After a failure the rest of the round is not sent, or each of its reports could wait for its timeout.
            if sent or robot == 0:
                sent = fleet.report(client, episode, number=first_number + round_number)
            unreported += not sent
    if unreported:
        _say(f"{unreported:,} of {len(episodes):,} episodes were not reported, because the server did not answer.")
    return episodes


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _require_fit(env: GoalEnv, served: PolicyDescription) -> None:
    if served.environment != env.spec.name:
        raise DriveError(
            f"the policy was trained on {served.environment}, not {env.spec.name}; pass --env "
            f"{served.environment}, or choose another policy"
        )
    for what in ("state_names", "goal_names", "action_names"):  # a user's own robot may have changed since training
        for theirs, ours in itertools.zip_longest(getattr(served, what), getattr(env.spec, what), fillvalue="nothing"):
            if theirs != ours:
                raise DriveError(
                    f"the policy's {what.replace('_', ' ')} contain {theirs!r} where {env.spec.name} now has"
                    f" {ours!r}; train it again"
                )


if __name__ == "__main__":
    sys.exit(main())
