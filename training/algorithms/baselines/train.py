"""Train SAC or PPO with brax's training package, to measure what the contrastive objective adds.

Both train our networks, so depth, width and ablations mean the same, on the same environments with a reward of 1 on
every step at the goal, and are evaluated like CRL. Every reset draws a new start and goal, as in contrastive training.
brax does not give access to the replay buffer and the optimizer, so such a run cannot be resumed. It publishes no
policy; its results are the metrics.

SAC uses the configuration's replay buffer sizes, batch size and ratio of gradient steps; PPO uses the unroll.
"""

# jax.device_put_replicated, set below, has no type.
# pyright: reportInvalidTypeForm=false

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from training.algorithms.baselines import ppo, sac
from training.algorithms.baselines.evaluator import Evaluator, StopTraining, evaluations
from training.config import TrainConfig
from training.envs.core.goal_env import GoalEnv
from training.progress_display import Progress, Status
from training.run_dir import references
from training.run_dir.metrics_log import MetricsLog

_ALGORITHMS = {"sac": sac.train, "ppo": ppo.train}


def train(
    config: TrainConfig,
    env: GoalEnv,
    eval_env: GoalEnv,
    *,
    progress: Progress,
    clock: Callable[[], float],
    began: float | None = None,
) -> dict[str, float]:
    """Train with `config.algorithm` into the folder `config.out`; return the last evaluation's metrics.

    Args:
        began: when the command started, by `clock`; None: now.

    Raises:
        FloatingPointError: a loss is NaN or infinity.
        PhysicsOverflowError: Warp's arrays are too small for the contacts.
        OSError: the folder cannot be written.
    """
    with MetricsLog(config, keep_until=0) as log:
        steps = config.iterations * config.steps_per_iteration
        progress.say(f"{config.env}: {config.algorithm}, {steps:,} steps or more, evaluations: {evaluations(config)}")
        progress.advance(Status(f"training with {config.algorithm}", of=config.iterations))
        evaluator = Evaluator(config, env, eval_env, log=log, progress=progress, clock=clock, began=began)
        with contextlib.suppress(StopTraining), _device_put_replicated():
            _ALGORITHMS[config.algorithm](config, env, evaluator)
        if line := references.describe(log.rows[-1], references.read(config.out)):
            progress.say(line)
        progress.say(f"curves in {log.draw_curves()}; a baseline publishes no policy")
        return log.rows[-1]


@contextlib.contextmanager
def _device_put_replicated() -> Generator[None]:
    """Provide `jax.device_put_replicated`, which brax 0.14.2 calls and JAX 0.10 has removed (google/brax issue 671)."""
    if hasattr(jax, "device_put_replicated"):
        yield
        return

    def replicate(tree: Any, devices: list[jax.Device]) -> Any:
        mesh = jax.sharding.Mesh(np.array(devices), ("copies",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("copies"))
        return jax.tree.map(lambda leaf: jax.device_put(jnp.stack([leaf] * len(devices)), sharding), tree)

    jax.device_put_replicated = replicate
    try:
        yield
    finally:
        del jax.device_put_replicated
