"""SAC and PPO from brax's training package, to see what the contrastive objective buys.

Both train networks of ours (so depth, width and ablations mean the same) on the same environments, rewarded with 1 on
every step at the goal, and are judged by the same evaluation. Every reset draws a fresh start and goal, as in
contrastive training. They have no replay or optimiser that could be continued from, so a run of theirs leaves a record
and no policy.

SAC takes the replay's sizes, the batch and the share of gradient steps from the configuration; PPO takes the unroll.
"""

# brax types its trainers by its own retired environments, and its dataclasses are opaque to type checkers.
# pyright: reportArgumentType=false, reportCallIssue=false, reportIncompatibleMethodOverride=false
# pyright: reportInvalidTypeForm=false, reportAttributeAccessIssue=false

from training.envs import physics, registry  # before brax, which imports MuJoCo: not to be told of MUJOCO_GL

# isort: split
import contextlib
import functools
import math
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from brax.envs.base import Env, State, Wrapper
from brax.envs.wrappers.training import EpisodeWrapper, VmapWrapper
from brax.training import checkpoint
from brax.training.agents.ppo import networks as ppo_networks
from brax.training.agents.ppo import train as ppo
from brax.training.agents.sac import networks as sac_networks
from brax.training.agents.sac import train as sac
from brax.training.distribution import NormalTanhDistribution
from brax.training.networks import FeedForwardNetwork

from policy.layers import Architecture, Execution
from policy.networks import ResidualNetwork, apply_network, init_network
from training import evaluate, run_folder
from training.config import TrainConfig
from training.envs.base import GoalEnv
from training.loop import require_device
from training.report import Report

_CRITICS = 2  # SAC's, of which the lower counts
_LARGEST_MINIBATCHES = 8  # PPO: minibatches of one pass over an unroll
_PASSES = 4  # PPO: over an unroll
_ENTROPY_COST = 0.05  # PPO: a reward of nought or one is forgotten for good once an actor is sure of the wrong goal
_GRADIENT_NORM = 0.5  # PPO: a longer gradient is shortened to it
_SAC_LOSSES = {
    "loss/actor": "training/actor_loss",
    "loss/critic": "training/critic_loss",
    "loss/temperature": "training/alpha_loss",
    "temperature": "training/alpha",
}
_PPO_LOSSES = {
    "loss/actor": "training/policy_loss",
    "loss/critic": "training/v_loss",
    "loss/entropy": "training/entropy_loss",
}


class _EnoughError(Exception):
    """Ends brax's own loop, which knows of no limit but environment steps."""


def train(
    config: TrainConfig, *, console: rich.console.Console, clock: Callable[[], float] = time.monotonic
) -> dict[str, float]:
    """Train as `config` says and record every evaluation; return the last one's metrics.

    Raises:
        ConfigError: the device cannot do what the configuration asks for.
        OutputFolderError: another process trains in the folder, or it holds what is not overwritten.
        FloatingPointError: a loss is no longer finite.
        PhysicsOverflowError: Warp has no room for the robots' contacts.
        OSError: the folder cannot be written.
    """
    require_device(config)
    env = registry.make(config.env, impl=config.physics)
    evaluate.environment(config, env)  # refused before anything is touched, if it does not fit
    with run_folder.claimed(config) as take_folder:
        take_folder()
        return _train(config, env, console=console, clock=clock)


def _train(
    config: TrainConfig, env: GoalEnv, *, console: rich.console.Console, clock: Callable[[], float]
) -> dict[str, float]:
    with Report(config.out, keep_until=0, console=console) as report:
        steps = config.iterations * config.steps_per_iteration
        report.say(f"{config.env}: {config.algorithm}, {steps:,} steps at least, {_evaluations(config)} evaluations")
        judge = _Judge(config, env, report=report, clock=clock)
        with contextlib.suppress(_EnoughError), _replication():
            {"sac": _train_sac, "ppo": _train_ppo}[config.algorithm](config, env, judge)
        report.say(f"curves in {report.draw_curves()}; a baseline publishes no policy")
        return report.rows[-1]


class _Judge:
    """Evaluates, records, and ends a run that has reached its share or its time."""

    def __init__(self, config: TrainConfig, env: GoalEnv, *, report: Report, clock: Callable[[], float]) -> None:
        self._config, self._env, self._report, self._clock = config, env, report, clock
        self._judged, self._overflow = evaluate.environment(config, env), np.zeros((), np.int32)
        self._began = self._since = clock()
        self._evaluate = jax.jit(
            functools.partial(
                evaluate.evaluate,
                self._judged,
                episodes=config.eval_episodes,
                episode_length=config.episode_length,
            )
        )

    def note_overflow(self, flags: np.ndarray) -> None:
        """Keep what physics in training had no room for, for the next evaluation to make an error of."""
        self._overflow = self._overflow | np.bitwise_or.reduce(np.asarray(flags), axis=None)

    def __call__(self, env_steps: int, actor: ResidualNetwork, losses: Mapping[str, float]) -> None:
        config, now = self._config, self._clock()
        evaluation = self._evaluate(actor, key=evaluate.evaluation_key(config.seed, env_steps))
        jax.effects_barrier()  # what training had to note is noted
        self._env.require_no_overflow(self._overflow)
        self._judged.require_no_overflow(evaluation.overflow)
        summary = evaluate.summarise(evaluation)
        broken = [name for name, loss in losses.items() if not math.isfinite(loss)]
        if broken:
            raise FloatingPointError(f"{broken[0]} is not finite by step {env_steps:,}. Try a lower learning rate")
        elapsed = {"time/train_s": now - self._since, "time/total_s": self._clock() - self._began}
        self._since = self._clock()
        self._report.record({"env_steps": env_steps, **losses, **summary, **elapsed})
        if summary["eval/success_any"] >= config.stop_at_share:
            self._report.say(f"the share of {config.stop_at_share:g} is reached")
            raise _EnoughError
        if self._clock() - self._began >= config.max_minutes * 60:
            self._report.say(f"the limit of {config.max_minutes:g} minutes is reached")
            raise _EnoughError


class FreshResets(Wrapper):
    """Where an episode of a batch ends, another begins with a start and a goal of its own.

    brax's own wrapper puts an environment back to its first start and goal, again and again.

    Args:
        on_overflow: told the flags of `GoalEnv.overflow` after a step that has any.
    """

    def __init__(self, env: Env, *, on_overflow: Callable[[np.ndarray], None]) -> None:
        super().__init__(env)
        self._on_overflow = on_overflow

    def reset(self, rng: jax.Array) -> State:
        """A batch of starts, for keys [B, 2]; its info keeps a key for the resets to come."""
        state = self.env.reset(rng)
        return state.replace(info={**state.info, "reset_key": jax.vmap(jax.random.split)(rng)[:, 1]})

    def step(self, state: State, action: jax.Array) -> State:
        """One step of every environment; `done` still says which have ended, the rest is of the episode begun."""
        ended = state.done > 0
        steps = jnp.where(ended, 0, state.info["steps"])
        before = state.replace(done=jnp.zeros_like(state.done), info={**state.info, "steps": steps})
        moved = self.env.step(before, action)
        self._tell(physics.overflow(moved.pipeline_state))
        keys = jax.vmap(jax.random.split)(moved.info["reset_key"])
        begun = self.env.reset(keys[:, 0])

        def choose(fresh: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(moved.done.reshape(-1, *(1,) * (old.ndim - 1)) > 0, fresh, old)

        fresh, old = ((each.pipeline_state, each.obs, _task(each)) for each in (begun, moved))
        pipeline_state, obs, task = jax.tree.map(choose, fresh, old)
        info = {**moved.info, **task, "reset_key": keys[:, 1]}
        return moved.replace(pipeline_state=pipeline_state, obs=obs, info=info)

    def _tell(self, flags: jax.Array) -> None:
        """brax keeps the physics to itself, so what was dropped leaves it by a callback. Only Warp drops anything."""
        if flags.ndim:
            jax.lax.cond(jnp.any(flags), lambda: jax.debug.callback(self._on_overflow, flags), lambda: None)


def _task(state: State) -> dict[str, jax.Array]:
    return {name: state.info[name] for name in ("state", "goal")}


def wrap(
    env: Env,
    episode_length: int,
    action_repeat: int = 1,
    randomization_fn: None = None,
    *,
    on_overflow: Callable[[np.ndarray], None],
) -> Wrapper:
    """As brax's function of that name, with `FreshResets`; the names of the arguments but the last are brax's."""
    del randomization_fn
    return FreshResets(EpisodeWrapper(VmapWrapper(env), episode_length, action_repeat), on_overflow=on_overflow)


class _NothingToJudge(Wrapper):
    """Stands in for the environment in SAC's own evaluation, which cannot be left out."""

    def reset(self, rng: jax.Array) -> State:
        """No physics."""
        del rng
        nothing = jnp.zeros(())
        info: dict[str, Any] = {"state": nothing, "goal": nothing}
        obs = jnp.zeros(self.observation_size)
        return State(pipeline_state=None, obs=obs, reward=nothing, done=nothing, metrics={}, info=info)

    def step(self, state: State, action: jax.Array) -> State:
        """No change."""
        del action
        return state


class _Net(NamedTuple):
    """A residual network as brax wants one: parameters in a plain list, which its checkpoints give back as saved."""

    in_dim: int
    out_dim: int
    depth: int
    width: int
    architecture: Architecture
    execution: Execution

    def init(self, key: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(self._fresh(key))

    def apply(self, params: list[Any], inputs: jax.Array) -> jax.Array:
        """[..., in_dim] -> [..., out_dim]."""
        return apply_network(self.network(params), inputs, execution=self.execution)

    def network(self, params: list[Any]) -> ResidualNetwork:
        structure = jax.tree.structure(jax.eval_shape(self._fresh, jax.random.key(0)))
        return jax.tree.unflatten(structure, params)

    def _fresh(self, key: jax.Array) -> ResidualNetwork:
        sizes = {"depth": self.depth, "width": self.width, "out_dim": self.out_dim}
        return init_network(key, self.in_dim, **sizes, architecture=self.architecture)


def _actor_net(config: TrainConfig, env: GoalEnv) -> _Net:
    """Mean and scale of an action: as brax's distribution reads them, so the mean comes first in both houses."""
    return _Net(
        env.observation_size, 2 * env.action_size, config.actor_depth, config.actor_width, *_architecture(config)
    )


def _critic_net(config: TrainConfig, in_dim: int) -> _Net:
    return _Net(in_dim, 1, config.critic_depth, config.critic_width, *_architecture(config))


def _architecture(config: TrainConfig) -> tuple[Architecture, Execution]:
    architecture = Architecture(activation=config.activation, layer_norm=config.layer_norm, residual=config.residual)
    return architecture, Execution(precision=config.precision, remat=config.remat)


def _train_sac(config: TrainConfig, env: GoalEnv, judge: _Judge) -> None:
    actor = _actor_net(config, env)
    critic = _critic_net(config, env.observation_size + env.action_size)

    def networks(action_size: int, **_: Any) -> sac_networks.SACNetworks:
        def apply_critics(_: Any, params: list[list[Any]], observation: jax.Array, action: jax.Array) -> jax.Array:
            inputs = jnp.concatenate([observation, action], axis=-1)
            return jnp.concatenate([critic.apply(each, inputs) for each in params], axis=-1)

        return sac_networks.SACNetworks(
            policy_network=_feed_forward(actor),
            q_network=FeedForwardNetwork(
                init=lambda key: [critic.init(each) for each in jax.random.split(key, _CRITICS)], apply=apply_critics
            ),
            parametric_action_distribution=NormalTanhDistribution(event_size=action_size),
        )

    with tempfile.TemporaryDirectory(prefix=".sac-", dir=config.out.absolute()) as scratch:

        def judge_checkpoint(env_steps: int, metrics: Mapping[str, Any]) -> None:
            if env_steps:  # SAC tells its parameters to nobody; what it has just saved can be read
                _, params = checkpoint.load(Path(scratch) / f"{env_steps:012d}")
                judge(env_steps, actor.network(params), _renamed(metrics, _SAC_LOSSES))

        sac.train(
            env,
            **_shared(config, judge),
            batch_size=config.batch_size,
            min_replay_size=config.num_envs * config.replay_min,
            max_replay_size=config.num_envs * config.replay_capacity,
            grad_updates_per_step=max(1, round(config.updates_per_unroll / config.unroll)),
            network_factory=networks,
            num_eval_envs=1,
            eval_env=_NothingToJudge(env),
            progress_fn=judge_checkpoint,
            checkpoint_logdir=scratch,
        )


def _train_ppo(config: TrainConfig, env: GoalEnv, judge: _Judge) -> None:
    actor, critic = _actor_net(config, env), _critic_net(config, env.observation_size)
    latest: list[Any] = []

    def networks(_: Any, action_size: int, **__: Any) -> ppo_networks.PPONetworks:
        return ppo_networks.PPONetworks(
            policy_network=_feed_forward(actor),
            value_network=FeedForwardNetwork(
                init=critic.init, apply=lambda _, params, observation: critic.apply(params, observation)[..., 0]
            ),
            parametric_action_distribution=NormalTanhDistribution(event_size=action_size),
        )

    def keep(_: int, __: Any, params: tuple[Any, ...]) -> None:
        latest[:] = params[1]

    minibatches = math.gcd(config.num_envs, _LARGEST_MINIBATCHES)
    ppo.train(
        env,
        **_shared(config, judge),
        entropy_cost=_ENTROPY_COST,
        max_grad_norm=_GRADIENT_NORM,
        unroll_length=config.unroll,
        batch_size=config.num_envs // minibatches,
        num_minibatches=minibatches,
        num_updates_per_batch=_PASSES,
        network_factory=networks,
        run_evals=False,
        policy_params_fn=keep,
        progress_fn=lambda steps, metrics: judge(steps, actor.network(latest), _renamed(metrics, _PPO_LOSSES)),
    )


def _shared(config: TrainConfig, judge: _Judge) -> dict[str, Any]:
    """What both of brax's trainers take, by brax's names."""
    return {
        "num_timesteps": config.iterations * config.steps_per_iteration,
        "episode_length": config.episode_length,
        "wrap_env_fn": functools.partial(wrap, on_overflow=judge.note_overflow),
        "num_envs": config.num_envs,
        "learning_rate": config.actor_learning_rate,
        "discounting": config.discount,
        "seed": config.seed,
        "num_evals": _evaluations(config) + 1,  # brax counts one before training
        "max_devices_per_host": 1,
    }


def _feed_forward(net: _Net) -> FeedForwardNetwork:
    return FeedForwardNetwork(init=net.init, apply=lambda _, params, observation: net.apply(params, observation))


def _evaluations(config: TrainConfig) -> int:
    return math.ceil(config.iterations / config.iterations_per_epoch)


def _renamed(metrics: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    return {ours: float(metrics[theirs]) for ours, theirs in names.items()}


@contextlib.contextmanager
def _replication() -> Generator[None]:
    """brax 0.14.2 calls `jax.device_put_replicated`, which JAX 0.10 no longer has (google/brax issue 671)."""
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
