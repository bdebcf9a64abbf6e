"""Evaluate a baseline as CRL is evaluated, log the metrics, and stop at the same limits."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from policy.networks import Network, PolicyParams
from training import eval_goals, evaluation
from training.config import TrainConfig
from training.envs.core.goal_env import GoalEnv
from training.progress_display import Progress, Status
from training.run_dir import goal_report, references
from training.run_dir.metrics_log import MetricsLog


class StopTraining(Exception):  # noqa: N818 - not an error
    """Ends brax's loop early. brax itself can only limit environment steps."""


class Evaluator:
    """Called by brax's loops with an actor; evaluates it, and raises `StopTraining` when a limit is reached."""

    def __init__(
        self,
        config: TrainConfig,
        env: GoalEnv,
        eval_env: GoalEnv,
        *,
        log: MetricsLog,
        progress: Progress,
        clock: Callable[[], float],
        began: float | None = None,
    ) -> None:
        self._config, self._env, self._eval_env = config, env, eval_env
        self._log, self._progress, self._clock = log, progress, clock
        self._overflow = np.zeros((), np.int32)
        self._eval_s = 0.0
        self._since = clock()
        self._began = self._since if began is None else began
        self._evaluate = jax.jit(
            functools.partial(
                evaluation.evaluate,
                eval_env,
                episodes=config.eval_episodes,
                episode_length=config.episode_length,
                goals=eval_goals.load(config, eval_env),
            )
        )
        self._source = evaluation.ActionSource.policy(config.eval_episodes)

    def note_overflow(self, flags: np.ndarray) -> None:
        """Remember overflow flags from training; the next evaluation raises an error for them."""
        self._overflow = self._overflow | np.bitwise_or.reduce(np.asarray(flags), axis=None)

    def __call__(self, env_steps: int, actor: Network, losses: Mapping[str, float]) -> None:
        """Evaluate `actor` after `env_steps` and log the result together with `losses`."""
        config, now = self._config, self._clock()
        params, key = PolicyParams(actor), evaluation.evaluation_key(config.seed, env_steps)
        evaluated = self._evaluate(params, key=key, source=self._source)
        references.measure_once(config, self._evaluate, params, clock=self._clock)
        jax.effects_barrier()  # after it, every callback of training has run
        self._env.require_no_overflow(self._overflow)
        self._eval_env.require_no_overflow(evaluated.overflow)
        summary = evaluation.summarize(evaluated)
        broken = [name for name, loss in losses.items() if not math.isfinite(loss)]
        if broken:
            raise FloatingPointError(f"{broken[0]} is NaN or infinity by step {env_steps:,}. Try a lower learning rate")
        trained_s = now - self._since
        self._since = self._clock()
        self._eval_s += self._since - now
        elapsed = {"time/train_s": trained_s, "time/total_s": self._since - self._began}
        elapsed["time/eval_share"] = self._eval_s / max(self._since - self._began, 1e-9)
        row = {"env_steps": env_steps, **losses, **summary, **elapsed}
        self._log.write(row)
        goal_report.write(config, evaluated, env_steps=env_steps, goal_names=self._eval_env.spec.goal_names)
        status = Status(f"training with {config.algorithm}", of=config.iterations)
        self._progress.advance(status._replace(done=env_steps // config.steps_per_iteration))
        self._progress.evaluated(row)
        if evaluation.target_met(self._log.rows, config.target_stay_rate):
            self._progress.say(evaluation.target_message(config.target_stay_rate))
            raise StopTraining
        if self._since - self._began + trained_s > config.max_minutes * 60:  # the next part takes as long
            self._progress.say(f"ending early: the time limit has passed (max_minutes {config.max_minutes:g})")
            raise StopTraining


def evaluations(config: TrainConfig) -> int:
    """Return the number of evaluations of a run that does not end early."""
    return math.ceil(config.iterations / config.iterations_per_epoch)


def renamed(metrics: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """Return brax's metrics under our names; `names` has brax's name by ours."""
    return {ours: float(metrics[theirs]) for ours, theirs in names.items()}
