"""The settings of an evaluation: those of the command line, and training's for what it does not give.

A policy may come from others, so its provenance is not trusted: only the command line can name a module to import, or a
file to read.
"""

import argparse
from typing import TYPE_CHECKING, NamedTuple

from training.policy_command.result import UsageError

if TYPE_CHECKING:
    from policy.bundle import Bundle

EPISODES = 128  # if neither the command line nor the policy has a number
MAX_EPISODES = 10**6
MAX_SEED = 2**31 - 1


class Settings(NamedTuple):
    """How to evaluate. Equal settings give equal starts and goals."""

    env: str
    episodes: int
    seed: int
    episode_length: int | None  # control steps; None: that of the environment
    iteration: int  # training's count, which gives each of its evaluations other starts and goals
    goals: str | None  # a file
    impl: str


def of_training(policy: "Bundle") -> Settings | None:
    """Return the settings by which training evaluated this version; None if its provenance does not say."""
    try:
        config = policy.provenance["config"]
        steps = int(config["num_envs"]) * int(config["unroll_length"])
        settings = Settings(
            env=str(config["eval_env"] or config["env"]),
            episodes=int(config["eval_episodes"]),
            seed=int(config["seed"]),
            episode_length=int(config["episode_length"]),
            iteration=-(-policy.version // steps),  # the last may have ended before its last gradient steps
            goals=None if config["eval_goals"] is None else str(config["eval_goals"]),
            impl=str(config["impl"]),
        )
    except (KeyError, TypeError, ValueError, ArithmeticError):  # published by another program
        return None
    is_allowed = 1 <= settings.episodes <= MAX_EPISODES and 0 <= settings.seed <= MAX_SEED
    return settings if is_allowed else None


def chosen(arguments: argparse.Namespace, policy: "Bundle", *, recorded: Settings | None) -> Settings:
    """Return the settings of the command line, and those of training for what is not given.

    The file of goals and the physics are those of the command line only: warp needs a GPU.

    Raises:
        UsageError: training's environment is in a module, which only the command line may name.
    """
    usual = recorded or Settings(policy.spec.environment, EPISODES, 0, None, 0, None, "jax")
    if arguments.env is None and ":" in usual.env:
        raise UsageError(
            f"{policy.spec.name} was evaluated on {usual.env}, whose module is code of its own; if you trust the code, "
            f"use --env {usual.env}"
        )
    return usual._replace(
        env=usual.env if arguments.env is None else arguments.env,
        episodes=usual.episodes if arguments.episodes is None else arguments.episodes,
        seed=usual.seed if arguments.seed is None else arguments.seed,
        goals=None if arguments.goals is None else str(arguments.goals),
        impl=arguments.impl,
    )
