"""Compare the whole training loop with its physics and its matrix products.

    python benchmarks/train_loop.py --depths 4,64 --json train_loop.json

An iteration is an unroll of all environments followed by a round of gradient steps, as in training. Its bound is the
sum of two times: the same environment steps with physics alone (random actions, no replay buffer), and the FLOP of
the same gradient steps at the rate of matrix products alone. Both are measured in turns with the iterations, in one
process.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import _record
import jax
import jax.numpy as jnp
import train_step
import tyro

from training.config import TrainConfig
from training.envs import registry
from training.envs.core.goal_env import GoalEnv
from training.programs import Programs, RunState, compile_programs, initial_state


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the environment steps per second of the training loop, and the time of its parts."""

    json: Path | None = None
    """File for the record."""
    env: str = "point_u_maze"
    """Environment to train on."""
    depths: train_step.Depths = (4, 64)
    """Depths of the actor and the critic, measured one after another."""
    num_envs: int = 16
    """Number of parallel environments."""
    unroll_length: int = 40
    """Steps of every environment in an iteration."""
    steps_per_gradient_step: int = 40
    """Environment steps per gradient step, summed over all environments."""
    batch: int = 256
    """Number of rows in the batch of a gradient step."""
    width: int = 256
    """Width of every network."""
    precision: Literal["f32", "bf16"] = "f32"
    """Precision of matrix products, in training and in the bound."""
    use_cache: bool = False
    """Use JAX's compilation cache if one is configured. The column `start s` then means nothing."""
    repeats: int = 5
    """Number of measured iterations. Figures are medians."""
    quick: bool = False
    """Small networks and two iterations: checks that the script works; the figures mean nothing."""


class Iteration(NamedTuple):
    """Seconds of one iteration by part, and of its bound, measured directly afterwards."""

    collect: float
    learn: float
    physics: float  # for the same number of environment steps
    products: float  # for the same number of FLOP


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, depths=(4,), width=32, batch=32, repeats=2)
    about = _record.machine()
    jax.config.update("jax_enable_compilation_cache", options.use_cache)
    rows = [measure(options, depth) for depth in options.depths]
    updates = config_for(options, 4, Path()).updates_per_unroll
    _record.report(
        f"the training loop on {options.env}",
        rows,
        about=about,
        json_file=options.json,
        notes=f"{options.num_envs} environments; an iteration is {options.unroll_length} steps and "
        f"{updates} gradient steps of batch {options.batch}, width {options.width}, {options.precision}; "
        f"medians of {options.repeats}; "
        "start s: from the start to the end of the first round of gradient steps; "
        "bound: physics alone plus matrix products alone; of bound: fraction of the bound's steps/s",
    )


def measure(options: Options, depth: int) -> dict[str, Any]:
    """Return one row of the table."""
    with tempfile.TemporaryDirectory() as scratch:
        config = config_for(options, depth, Path(scratch) / "run")
        began = time.perf_counter()
        env = registry.make(config.env)
        state = initial_state(config, env)
        programs = compile_programs(config, env, state)
        round_size = jnp.int32(config.updates_per_unroll)
        state, _ = programs.learn(programs.collect(programs.collect(state)), round_size)
        jax.block_until_ready(state)
        start = time.perf_counter() - began
    iterations = take_turns(options, config, env, programs=programs, state=state)
    steps = config.steps_per_iteration

    def median(figure: Callable[[Iteration], float]) -> float:
        return statistics.median(map(figure, iterations))

    return {
        "depth": depth,
        "start s": start,
        "steps/s": median(lambda each: steps / (each.collect + each.learn)),
        "collect s": median(lambda each: each.collect),
        "learn s": median(lambda each: each.learn),
        "physics steps/s": median(lambda each: steps / each.physics),
        "bound steps/s": median(lambda each: steps / (each.physics + each.products)),
        "of bound": median(lambda each: (each.physics + each.products) / (each.collect + each.learn)),
    }


def config_for(options: Options, depth: int, out: Path) -> TrainConfig:
    """Return the paper's preset with the given sizes, without a warm-up."""
    return dataclasses.replace(
        TrainConfig(env=options.env, out=out, preset="paper"),
        num_envs=options.num_envs,
        unroll_length=options.unroll_length,
        updates_per_unroll=max(1, options.num_envs * options.unroll_length // options.steps_per_gradient_step),
        batch_size=options.batch,
        min_replay_size=1,
        actor_depth=depth,
        critic_depth=depth,
        actor_width=options.width,
        critic_width=options.width,
        precision=options.precision,
        allow_bf16_on_cpu=True,
    )


def take_turns(
    options: Options, config: TrainConfig, env: GoalEnv, *, programs: Programs, state: RunState
) -> list[Iteration]:
    """Run iterations, each followed by its physics and its matrix products alone."""
    sizes = train_step.Sizes(
        config.batch_size,
        options.width,
        config.actor_depth,
        env.state_size,
        env.goal_size,
        env.action_size,
        config.representation_dim,
    )
    flop = config.updates_per_unroll * train_step.step_flop(
        sizes, train_step.FLOWS[train_step.OURS], logits_by_product=True
    )
    multiply = train_step.matrix_products(
        train_step.Options(batch=options.batch, width=options.width, precision=options.precision)
    )
    move, robots = physics(config, env)
    round_size = jnp.int32(config.updates_per_unroll)
    iterations: list[Iteration] = []
    for _ in range(options.repeats):
        state, collect = _record.timed(lambda state=state: programs.collect(state))
        (state, _), learn = _record.timed(lambda state=state: programs.learn(state, round_size))
        robots, alone = _record.timed(lambda robots=robots: move(robots, jax.random.key(1)))
        iterations.append(Iteration(collect, learn, alone, products=flop / multiply(at_least_s=min(learn, 2.0))))
    return iterations


def physics(config: TrainConfig, env: GoalEnv) -> tuple[Callable[..., Any], Any]:
    """Return a compiled unroll of random actions, and the robots at its start."""

    def step(robots: Any, key: jax.Array) -> tuple[Any, None]:
        actions = jax.random.uniform(key, (config.num_envs, env.action_size), minval=-1)
        return jax.vmap(env.step)(robots, actions), None

    def unroll(robots: Any, key: jax.Array) -> Any:
        return jax.lax.scan(step, robots, jax.random.split(key, config.unroll_length))[0]

    robots = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), config.num_envs))
    compiled = jax.jit(unroll).lower(robots, jax.random.key(1)).compile()
    return compiled, jax.block_until_ready(compiled(robots, jax.random.key(1)))


if __name__ == "__main__":
    main()
