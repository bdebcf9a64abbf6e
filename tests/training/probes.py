"""Probe environments: tasks without physics that contrastive RL solves in seconds, unless one part of it is broken.

A probe isolates one failure, and `train` can bring about each of the failures on purpose. What is broken comes as a
number, and every state and goal has two values, so that all runs share one compiled program of gradient steps.
"""

import abc
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from policy.energy import ENERGIES
from policy.networks import Network, PolicyParams, init_policy
from tests.samples import policy_spec
from training import rollout
from training.algorithms.crl.losses import CRITIC_LOSSES
from training.algorithms.crl.update import CRL, TrainState
from training.data import hindsight, replay_buffer
from training.envs.core.goal_env import EnvSpec, GoalEnv, State

ENVIRONMENTS = 32
UNROLL = 16
CAPACITY = 128  # steps of each environment
ITERATIONS = 75
UPDATES_PER_UNROLL = 20
BATCH_SIZE = 64

SPEC = policy_spec(
    state_names=("x", "y"),
    goal_names=("x", "y"),
    action_names=("push",),
    action_low=(-1.0,),
    action_high=(1.0,),
    actor_width=32,
    critic_width=32,
)
CRL_STEP = CRL(
    achieved_goal=lambda state: state,
    actor_learning_rate=1e-3,
    critic_learning_rate=1e-3,
    temperature_learning_rate=1e-2,
    target_entropy=-0.5,
    critic_loss=CRITIC_LOSSES["forward"],
    energy=ENERGIES["l2"],
    logsumexp_penalty=0.1,
)


class Probe(GoalEnv):
    """A task whose next state follows from this one and the action by a formula; the goal is a state."""

    def __init__(self, *, name: str, success_radius: float, episode_length: int) -> None:
        self.spec = EnvSpec(
            name=name,
            state_names=SPEC.state_names,
            goal_names=SPEC.goal_names,
            action_names=SPEC.action_names,
            success_radius=success_radius,
            episode_length=episode_length,
            actuator_kind=SPEC.actuator_kind,
            rest_action=SPEC.rest_action,
        )

    @abc.abstractmethod
    def begin(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Draw a start and a goal, both [2]."""

    @abc.abstractmethod
    def move(self, state: jax.Array, push: jax.Array) -> jax.Array:
        """The state [2] after `state: [2]`, for a `push` between -1 and 1."""

    def reset(self, rng: jax.Array) -> State:
        return self._observe(*self.begin(rng))

    def step(self, state: State, action: jax.Array) -> State:
        moved = self.move(state.info["state"], jnp.clip(action[0], -1, 1))
        return self._observe(moved, state.info["goal"], before=state)

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        raise AssertionError("a probe has no joints")

    def sample_goal(self, key: jax.Array) -> jax.Array:
        return self.begin(key)[1]

    @property
    def action_low(self) -> tuple[float, ...]:
        return SPEC.action_low

    @property
    def action_high(self) -> tuple[float, ...]:
        return SPEC.action_high

    @property
    def control_period_s(self) -> float:
        return SPEC.control_period_s

    def sense(self, data: jax.Array) -> jax.Array:
        return data

    def achieved_goal(self, state: jax.Array) -> jax.Array:
        return state


class Line(Probe):
    """A point starts in the middle of a line; the goal is one of its ends.

    An end is at least four steps away, so an episode of six has no time for both: an actor that cannot see the goal
    reaches half of them at best.
    """

    def __init__(self) -> None:
        super().__init__(name="line", success_radius=0.2, episode_length=6)

    def begin(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        end = jax.random.rademacher(key, (), jnp.float32)
        return jnp.zeros(2), jnp.stack([end, 0.0])

    def move(self, state: jax.Array, push: jax.Array) -> jax.Array:
        return jnp.stack([jnp.clip(state[0] + push / 4, -1, 1), 0.0])


class Jump(Probe):
    """The next x is the push, wherever it is given; start and goal are anywhere in [-1, 1].

    The state says nothing about the goal: a critic that cannot see the action has nothing to teach.
    """

    def __init__(self) -> None:
        super().__init__(name="jump", success_radius=0.1, episode_length=8)

    def begin(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start, goal = jax.random.uniform(key, (2,), minval=-1, maxval=1)
        return jnp.stack([start, 0.0]), jnp.stack([goal, 0.0])

    def move(self, state: jax.Array, push: jax.Array) -> jax.Array:
        return jnp.stack([push, 0.0])


class Ratchet(Probe):
    """A wheel that turns only forwards, by up to a fifth of a turn; a negative push holds it where it is.

    The goal lies a sixth of a turn behind the start. The way there first leads away from it, for a third of a turn,
    and of all states one step ahead the nearest to it is the start itself. A wheel that stops anywhere by chance is
    within half a radius of its goal in one case of six.
    """

    def __init__(self) -> None:
        super().__init__(name="ratchet", success_radius=0.5, episode_length=20)

    def begin(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = jax.random.uniform(key)
        return _on_the_rim(start), _on_the_rim(start - 1 / 6)

    def move(self, state: jax.Array, push: jax.Array) -> jax.Array:
        turned = jnp.arctan2(state[1], state[0]) / (2 * jnp.pi)
        return _on_the_rim(turned + jnp.maximum(push, 0) / 5)


class Halves(Probe):
    """Two lines with y at -1 and at 1, and no way between them. An episode of four steps starts on one of the two."""

    def __init__(self) -> None:
        super().__init__(name="halves", success_radius=0.3, episode_length=4)

    def begin(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        start, goal, half = jax.random.uniform(key, (3,), minval=-1, maxval=1)
        return jnp.stack([start, jnp.sign(half)]), jnp.stack([goal, jnp.sign(half)])

    def move(self, state: jax.Array, push: jax.Array) -> jax.Array:
        return jnp.stack([jnp.clip(state[0] + push / 4, -1, 1), state[1]])


def _on_the_rim(turns: jax.Array) -> jax.Array:
    """The point [2] of the unit circle that lies `turns` from (1, 0)."""
    angle = 2 * jnp.pi * turns
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


class Trainable(NamedTuple):
    """What a run leaves behind."""

    params: PolicyParams
    replay: replay_buffer.ReplayBuffer


def train(
    env: Probe,
    *,
    seed: int = 0,
    discount: float = 0.9,
    goal_seen: float = 1.0,
    action_seen: float = 1.0,
    episodes_told: int = 1,
) -> Trainable:
    """Train on `env` as `training.trainer` does, without its shell.

    Args:
        discount: of the hindsight law; next to 0, the goal is always the next state.
        goal_seen: factor on what reaches the actor of the goal; 0 for an actor that ignores it.
        action_seen: factor on what reaches the critic of the action; 0 for a critic that ignores it.
        episodes_told: factor on the episode numbers that the replay is told; 0 for one endless episode.
    """
    learner_key, robots_key, iterations_key = jax.random.split(jax.random.key(seed), 3)
    train_state = _fresh_learner(learner_key, goal_seen, action_seen)
    robots = _start(env, robots_key)
    ring = replay_buffer.empty(
        CAPACITY, unroll_length=UNROLL, environments=ENVIRONMENTS, state_dim=SPEC.state_dim, action_dim=SPEC.action_dim
    )
    for collect_key, learn_key in jax.random.split(iterations_key, (ITERATIONS, 2)):
        robots, unroll = _collect(env, train_state.params, robots, key=collect_key)
        steps = unroll.steps._replace(episode=unroll.steps.episode * episodes_told)
        train_state, ring = _learn(
            train_state, ring, steps, key=learn_key, discount=discount, goal_seen=goal_seen, action_seen=action_seen
        )
    return Trainable(train_state.params, ring)


@jax.jit
def _fresh_learner(key: jax.Array, goal_seen: float, action_seen: float) -> TrainState:
    return CRL_STEP.init(_dim(init_policy(key, SPEC), goal_seen=goal_seen, action_seen=action_seen))


@functools.partial(jax.jit, static_argnums=0)
def _start(env: Probe, key: jax.Array) -> rollout.RolloutState:
    return rollout.start(env, key, environments=ENVIRONMENTS)


@functools.partial(jax.jit, static_argnums=0)
def _collect(
    env: Probe, params: PolicyParams, robots: rollout.RolloutState, *, key: jax.Array
) -> tuple[rollout.RolloutState, rollout.Unroll]:
    return rollout.collect(
        env,
        params,
        robots,
        key=key,
        unroll_length=UNROLL,
        episode_length=env.spec.episode_length,
        resample_goal_probability=0.0,
        resample_at_goal_probability=0.0,
    )


@jax.jit
def _learn(
    train_state: TrainState,
    ring: replay_buffer.ReplayBuffer,
    steps: replay_buffer.Steps,
    *,
    key: jax.Array,
    discount: float,
    goal_seen: float,
    action_seen: float,
) -> tuple[TrainState, replay_buffer.ReplayBuffer]:
    """Put an unroll into the replay and take a round of gradient steps."""
    ring = replay_buffer.insert(ring, steps)
    pairs_key, update_key = jax.random.split(key)
    pairs = hindsight.sample_pairs(pairs_key, ring, (UPDATES_PER_UNROLL, BATCH_SIZE), discount=discount)

    def one_update(train_state: TrainState, xs: tuple[replay_buffer.Pairs, jax.Array]) -> tuple[TrainState, None]:
        pairs, noise_key = xs
        train_state, _ = CRL_STEP.update(train_state, replay_buffer.gather(ring, pairs), key=noise_key)
        return train_state._replace(params=_dim(train_state.params, goal_seen=goal_seen, action_seen=action_seen)), None

    train_state, _ = jax.lax.scan(one_update, train_state, (pairs, jax.random.split(update_key, UPDATES_PER_UNROLL)))
    return train_state, ring


def _dim(params: PolicyParams, *, goal_seen: float, action_seen: float) -> PolicyParams:
    """Scale what the actor's first layer takes of the goal, and the critic's of the action."""
    return params._replace(
        actor=_scale_last_inputs(params.actor, goal_seen),
        state_action_encoder=_scale_last_inputs(params.state_action_encoder, action_seen),
    )


def _scale_last_inputs(network: Network | None, factor: float) -> Network:
    """Scale the first layer's weights for all inputs that follow the state."""
    assert network is not None
    layer = network.params["input"]
    kernel = layer["kernel"].at[SPEC.state_dim :].multiply(factor)
    return dataclasses.replace(network, params=network.params | {"input": layer | {"kernel": kernel}})
