"""What a run needs of memory, by hand and against the compiler, and what is said when there is too little."""

import re
from typing import Any

import jax
import numpy as np
import pytest

from policy.networks import init_policy
from training.algorithms.crl.update import CRL
from training.budgets import memory_budget
from training.config import TrainConfig
from training.data.replay_buffer import Batch
from training.envs.core.goal_env import GoalEnv


def test_the_parts_by_hand(tiny, u_maze: GoalEnv, tmp_path) -> None:
    config: TrainConfig = tiny(tmp_path, actor_depth=8, critic_depth=4, actor_width=10, critic_width=20, batch_size=3)
    parts = memory_budget.estimate(config, u_maze)
    assert parts.replay == 8 * 23 * (4 * (4 + 2) + 4)
    assert parts.parameters == 16 * (8 * 100 + 2 * 4 * 400)
    assert parts.activations == 5 * 3 * (8 * 10 + 3 * 4 * 20)  # 1.25 arrays of 4 bytes per layer
    assert parts.logits == 5 * 4 * 3 * 3
    assert parts.indices == 4 * 4 * 3 * 3  # three updates of three rows
    assert parts.restored == parts.replay  # which is less than what is read at a time
    assert memory_budget.estimate(tiny(tmp_path, max_replay_size=10**6), u_maze).restored == 2 * 2**24
    assert parts.total == sum(parts)


def test_commanded_goals_are_stored_for_the_whole_round(tiny, u_maze: GoalEnv, tmp_path) -> None:
    parts = memory_budget.estimate(tiny(tmp_path, batch_size=8, commanded_goals=0.5), u_maze)
    assert parts.indices == 3 * (8 * 4 * 4 + 4 * 2 * 4)  # three updates: eight rows of indices, four goals of x and y


def gradient_step(config: TrainConfig, env: GoalEnv) -> tuple[Any, tuple[Any, Any]]:
    """One gradient step, as training jits it, and the shapes that it is lowered for."""
    spec, crl = config.policy_spec(env), CRL.from_config(config, env)
    train_state = jax.eval_shape(lambda: crl.init(init_policy(jax.random.key(0), spec)))
    state, action = (
        jax.ShapeDtypeStruct((config.batch_size, size), np.float32) for size in (env.state_size, env.action_size)
    )
    step = jax.jit(lambda *args: crl.update(args[0], args[1], key=jax.random.key(0)), donate_argnums=0)
    return step, (train_state, Batch(state, action, state))


def test_depth_1024_at_batch_512_stays_under_8_gb(tmp_path, u_maze: GoalEnv) -> None:
    """The compiler's own count for the gradient step of the paper's width, with what is kept by default."""
    config = TrainConfig(env="point_u_maze", preset="paper", out=tmp_path, actor_depth=1024, critic_depth=1024)
    step, arguments = gradient_step(config, u_maze)
    analysis = step.lower(*arguments).compile().memory_analysis()
    assert analysis is not None
    used = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    assert 4e9 < used < 8e9
    parts = memory_budget.estimate(config, u_maze)
    assert used == pytest.approx(parts.parameters + parts.activations + parts.logits, rel=0.15)


def test_a_large_batch_of_a_small_network_is_mostly_logits(tiny, tmp_path, u_maze: GoalEnv) -> None:
    config = tiny(tmp_path, batch_size=2048, critic_loss="symmetric")
    step, arguments = gradient_step(config, u_maze)
    analysis = step.lower(*arguments).compile().memory_analysis()
    assert analysis is not None
    parts = memory_budget.estimate(config, u_maze)
    assert analysis.temp_size_in_bytes == pytest.approx(parts.logits + parts.activations, rel=0.15)
    assert parts.logits > 10 * parts.activations


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        (
            {"num_envs": 1000, "max_replay_size": 10_000},
            r"replay 0.28 GB.*lower max_replay_size from 10000 to \d+ \(and min_replay_size with it\), "
            "or num_envs from 1000",
        ),
        ({"batch_size": 100_000}, r"logits 200.00 GB.*lower batch_size from 100000 to \d+$"),
        (
            {"batch_size": 200, "actor_depth": 64, "critic_depth": 64},
            r"lower batch_size from 200 to \d+; .*--remat blocks",
        ),
        (
            {"critic_depth": 4096, "actor_depth": 4096},
            r"lower critic_depth from 4096 to \d+ and actor_depth from 4096 to",
        ),
        ({"critic_width": 4096}, r"lower critic_width from 4096 to \d+ and actor_width from 16 to"),
        ({"updates_per_unroll": 10_000_000}, r"indices 2.56 GB.*lower updates_per_unroll from 10000000 to \d+$"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(tiny, u_maze: GoalEnv, tmp_path, changes, advice: str) -> None:
    config = tiny(tmp_path, **changes)
    parts = memory_budget.estimate(config, u_maze)
    memory_budget.require_fit(config, u_maze, available=parts.total)
    with pytest.raises(MemoryError, match=advice) as refused:
        memory_budget.require_fit(config, u_maze, available=parts.total // 2)
    one, *other = re.findall(r"(\w+) from \d+ to (\d+)", str(refused.value))
    for alternative in ([one], other) if "or num_envs" in advice else ([one, *other],):
        lowered = {setting: int(value) for setting, value in alternative}
        memory_budget.require_fit(tiny(tmp_path, **(changes | lowered)), u_maze, available=parts.total // 2)
