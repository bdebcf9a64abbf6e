"""How a policy is evaluated: as the command line says, and in all else as training did."""

import argparse
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from policy.bundle import Bundle

EPISODES = 128  # if neither the command line nor the policy says a number


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
        return Settings(
            env=str(config["eval_env"] or config["env"]),
            episodes=int(config["eval_episodes"]),
            seed=int(config["seed"]),
            episode_length=int(config["episode_length"]),
            iteration=-(-policy.version // steps),  # the last may have ended before its last gradient steps
            goals=config["eval_goals"],
            impl=str(config["impl"]),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # published by another program
        return None


def chosen(arguments: argparse.Namespace, policy: "Bundle", *, recorded: Settings | None) -> Settings:
    """Return the settings of the command line, with those of training in place of what is not given."""
    from training.envs.registry import bare_name

    trained_on = str(policy.provenance.get("config", {}).get("env", "")) if recorded else ""
    own = trained_on if bare_name(trained_on) == policy.spec.environment else policy.spec.environment
    usual = recorded or Settings(own, EPISODES, 0, None, 0, None, "jax")
    return usual._replace(
        env=arguments.env or own,
        episodes=usual.episodes if arguments.episodes is None else arguments.episodes,
        seed=usual.seed if arguments.seed is None else arguments.seed,
        goals=None if arguments.goals is None else str(arguments.goals),
        impl=arguments.impl,
    )
