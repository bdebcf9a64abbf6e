"""kilolayer-policy evaluate: how well a published policy reaches goals, without a server.

It runs training's own evaluation. With the settings that training used, the episodes have the same starts and goals, so
the figures are those in the policy's provenance. They are the defaults, except for goals from a file and for warp.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.policy_command import evaluation_settings, folders
from training.policy_command.evaluation_settings import EPISODES, MAX_EPISODES, MAX_SEED, Settings
from training.policy_command.result import CommandError, Result, UsageError

if TYPE_CHECKING:
    from policy.bundle import Bundle
    from policy.networks import PolicyParams
    from training.config import TrainConfig
    from training.envs.core.goal_env import GoalEnv

HELP = "let a policy drive its simulated robot, and count how often it reaches its goals"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add DIR, --version and the settings."""
    folders.add_arguments(parser)
    parser.add_argument(
        "--env", metavar="E", help="environment; MODULE:NAME for one of your own (default: as in training)"
    )
    parser.add_argument(
        "--episodes", type=int, metavar="N", help=f"number of episodes (default: as in training, or {EPISODES})"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="of starts and goals (default: as in training, or 0)")
    parser.add_argument(
        "--goals", type=Path, metavar="FILE", help="CSV or .npy file with the goals, one a row (default: random goals)"
    )
    parser.add_argument(
        "--impl", choices=("jax", "warp"), default="jax", help="MJX implementation of the physics (default: jax)"
    )
    parser.add_argument("--video", type=Path, metavar="F", help="MP4 file for the first episode")


def run(arguments: argparse.Namespace) -> Result:
    """Evaluate the policy.

    Raises:
        UsageError: an argument is out of range, there is no such environment, the policy does not fit it, or it was
            trained on one that only --env may name.
        MissingVersionError, CommandError, OSError: the policy cannot be read.
        ModuleNotFoundError: the extra `train` is not installed.
    """
    _check(arguments)
    path = folders.chosen(arguments)
    import mujoco  # noqa: F401  # pyright: ignore[reportUnusedImport]  # of the extra, before the slow steps

    policy = folders.read(path)
    recorded = evaluation_settings.of_training(policy)
    settings = evaluation_settings.chosen(arguments, policy, recorded=recorded)
    config, env, goals = _prepared(settings, policy)
    settings = settings._replace(episode_length=config.episode_length)
    how: Any = {"config": config, "goals": goals, "iteration": settings.iteration}
    metrics = _metrics(env, policy.params, **how)
    is_filmed = arguments.video is not None and _film(arguments.video, env, policy.params, **how)
    facts = {
        "path": str(path),
        "version": policy.version,
        **{name: value for name, value in settings._asdict().items() if name != "iteration"},
        "metrics": metrics,
        "in_training": recorded and {**recorded._asdict(), "metrics": _recorded_metrics(policy)},
        "same_as_in_training": settings == recorded,
        "video": str(arguments.video) if is_filmed else None,
    }
    return Result(list(_describe(policy, facts, env)), facts)


def _check(arguments: argparse.Namespace) -> None:
    for name, least, most in (("episodes", 1, MAX_EPISODES), ("seed", 0, MAX_SEED)):
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise UsageError(f"--{name} must be from {least} to {most}, got {value}")


def _prepared(settings: Settings, policy: "Bundle") -> "tuple[TrainConfig, GoalEnv, Any]":
    """Return training's configuration of such an evaluation, the environment, and the goals of the file.

    Raises:
        UsageError: there is no such environment, the policy does not fit it, or the goals do not.
        CommandError: this machine or the environment does not support the implementation of the physics.
    """
    import dataclasses

    from policy.spec import SpecError
    from training import eval_goals
    from training.config import ConfigError, TrainConfig
    from training.envs import registry
    from training.envs.building.mazes import LayoutError
    from training.envs.core.errors import EnvError, UnknownNameError

    spec = policy.spec
    if spec.action_chunk > 1:
        raise UsageError(f"{spec.name} gives chunks of {spec.action_chunk} actions, which cannot be evaluated here")
    try:
        env = registry.make(settings.env, impl=settings.impl)
        config = TrainConfig(
            env=settings.env,
            eval_episodes=settings.episodes,
            seed=settings.seed,
            eval_goals=None if settings.goals is None else Path(settings.goals),
            episode_length=settings.episode_length or env.spec.episode_length,
        )
        fitting = config.policy_spec(env)
        if not spec.has_critic:
            fitting = dataclasses.replace(fitting, critic="none", critic_depth=0, critic_width=0, representation_dim=0)
        if difference := spec.interface_difference(fitting):
            raise UsageError(
                f"{spec.name} does not fit the environment {settings.env}: its {difference}; use --env with one for "
                "the same robot, units, limits and control period"
            )
        return config, env, eval_goals.load(config, env)
    except (ConfigError, EnvError, LayoutError, SpecError, UnknownNameError) as error:
        raise UsageError(str(error)) from error
    except ModuleNotFoundError:
        raise
    except (ImportError, NotImplementedError) as error:  # of --impl warp
        raise CommandError(str(error)) from error


def _metrics(
    env: "GoalEnv", params: "PolicyParams", *, config: "TrainConfig", goals: Any, iteration: int
) -> dict[str, float]:
    """Return the figures of training's evaluation, named as in metrics.jsonl.

    Raises:
        CommandError: the physics has dropped contacts.
    """
    import functools

    import jax

    from policy import compilation_cache
    from policy.bits import in_32_bits
    from training import evaluation
    from training.envs.core.physics import PhysicsOverflowError

    if warning := compilation_cache.enable():
        print(f"warning: {warning}", file=sys.stderr)
    program = functools.partial(
        evaluation.evaluate,
        env,
        episodes=config.eval_episodes,
        episode_length=config.episode_length,
        goals=goals,
    )

    @in_32_bits
    def evaluated() -> evaluation.Evaluation:
        source = evaluation.ActionSource.policy(config.eval_episodes)  # an argument, as in training's program
        return jax.jit(program)(params, key=evaluation.evaluation_key(config.seed, iteration), source=source)

    found = evaluated()
    try:
        env.require_no_overflow(found.overflow)
    except PhysicsOverflowError as error:
        raise CommandError(str(error)) from error
    return evaluation.summarize(found)


def _film(
    path: Path, env: "GoalEnv", params: "PolicyParams", *, config: "TrainConfig", goals: Any, iteration: int
) -> bool:
    """Write the first episode into an MP4 file; return whether that was possible. A failure is reported in one line."""
    from training import evaluation
    from training.envs.rendering.camera import CannotDrawError
    from training.policy_command import film

    try:
        film.write(
            path,
            env,
            params,
            key=evaluation.evaluation_key(config.seed, iteration),
            episodes=config.eval_episodes,
            episode_length=config.episode_length,
            goal=None if goals is None else goals[0],
        )
    except (CannotDrawError, OSError) as error:
        print(f"no video: {error}", file=sys.stderr)
        return False
    return True


def _recorded_metrics(policy: "Bundle") -> dict[str, Any]:
    """Return the figures that training recorded for this version."""
    metrics = policy.provenance.get("metrics", {})
    return {name: value for name, value in metrics.items() if name.startswith("eval/")}


def _describe(policy: "Bundle", facts: Mapping[str, Any], env: "GoalEnv") -> Iterator[str]:
    figures, episodes = facts["metrics"], facts["episodes"]
    yield (
        f"{policy.spec.name} version {policy.version} on {facts['env']}: {episodes:,} episodes of "
        f"{facts['episode_length']:,} steps, seed {facts['seed']}; 95 % intervals in brackets"
    )
    stay = f"{figures['eval/stay']:.3f} of the time since the first arrival"
    yield f"  stay            {stay} [{figures['eval/stay_low']:.3f}, {figures['eval/stay_high']:.3f}]"
    touched = f"{figures['eval/touched_count']:,} of {episodes:,} episodes, {figures['eval/touched']:.3f}"
    yield f"  touched         {touched} [{figures['eval/touched_low']:.3f}, {figures['eval/touched_high']:.3f}]"
    steps = figures["eval/time_at_goal"]
    yield f"  time at goal    {steps:.1f} steps, {steps * env.control_period_s:.2f} s"
    yield f"  final distance  {figures['eval/final_distance']:.3f}, success radius {env.spec.success_radius:g}"
    yield f"  episode length  {figures['eval/episode_length']:.1f} steps, {figures['eval/terminated']:.3f} ended early"
    yield f"  at the start    {figures['eval/reached_at_reset']:.3f} of the episodes begin at their goal"
    yield f"  diverged        {figures['eval/diverged_count']:,} episodes, which count as not reached"
    if facts["in_training"]:
        yield f"  in training     {_of_training(facts)}"
    if facts["video"]:
        yield f"  video           {facts['video']}, the first episode"


def _of_training(facts: Mapping[str, Any]) -> str:
    """Return what training found, or which settings it had instead."""
    found = facts["in_training"]
    if not facts["same_as_in_training"]:
        names = [name for name in Settings._fields if name in facts and found[name] != facts[name]]
        return f"other settings: {', '.join(f'{name} {found[name]}' for name in names)}"
    figures = [f"{name} {found['metrics'].get(f'eval/{name}', math.nan):.3f}" for name in ("stay", "touched")]
    return f"{', '.join(figures)}, with the same starts and goals"
