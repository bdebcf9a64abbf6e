"""TrainConfig: everything a training run is determined by, complete and checked when constructed."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from policy.spec import PolicySpec, SpecError, check_depth, check_name
from training.envs.core.errors import UnknownNameError
from training.envs.core.goal_env import GoalEnv
from training.envs.registry import bare_name, find


class ConfigError(Exception):
    """A combination that cannot work; the message names the field and a value that would."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a goal-reaching policy with contrastive RL and publish it.

    The environment's preset gives the defaults below; any flag changes one of them. The recipe is that of "1000 Layer
    Networks for Self-Supervised RL" (arXiv 2503.14858).
    """

    env: str
    """Environment to train on; MODULE:NAME for one of your own, which that module registers."""
    eval_env: str = ""
    """Environment to evaluate on, of the same state, goal and actions; empty for the one trained on."""
    out: Path
    """Folder for the run: policies/, snapshots/, metrics.jsonl, curves.png, TensorBoard events."""
    algorithm: Literal["crl", "sac", "ppo"] = "crl"
    """Contrastive RL; or, to compare with it, a baseline from brax on the same networks, environments and evaluation,
    rewarded with 1 at the goal. A baseline leaves a record and no policy."""
    preset: str = "paper"
    """Named defaults that the other flags start from; left out, the environment's own."""
    name: str = ""
    """Name the policy is served under; empty for the environment's."""
    seed: int = 0
    """Everything random in the run follows from it."""
    physics: Literal["jax", "warp"] = "jax"
    """MJX implementation."""

    total_env_steps: int = 100_000_000
    """Environment steps, all environments together, after which training ends."""
    max_minutes: float = math.inf
    """Wall-clock limit. Training ends early when it is reached, and evaluates and publishes as at any end."""
    num_envs: int = 512
    """Environments that run in step."""
    unroll: int = 62
    """Steps that every environment takes between two rounds of gradient steps."""
    stop_at_share: float = math.inf
    """Training ends early once an evaluation reaches this share of its goals."""
    episode_length: int = 1000
    """Steps after which an episode ends."""
    goal_redraw_probability: float = 0.0
    """Chance per step that the commanded goal is drawn anew within a training episode. Evaluation never does it."""
    at_goal_redraw_probability: float = 0.0
    """The same chance on steps within the success radius, so that robots travel rather than rest."""

    updates_per_unroll: int = 800
    """Gradient steps in a round."""
    batch_size: int = 512
    """Rows of a gradient step; each row's goal is every other row's negative."""
    replay_capacity: int = 10_000
    """Steps kept per environment."""
    replay_min: int = 1_000
    """Steps per environment before the first gradient step."""
    discount: float = 0.99
    """Hindsight goals lie k steps ahead with probability proportional to discount^k."""

    actor_depth: int = 4
    """Dense layers inside the actor's residual blocks; a multiple of 4."""
    actor_width: int = 256
    """Units of an actor layer."""
    critic_depth: int = 4
    """Dense layers inside each encoder's residual blocks; a multiple of 4."""
    critic_width: int = 256
    """Units of an encoder layer."""
    representation_dim: int = 64
    """Length of the encodings whose distance is the critic's energy."""
    actor_learning_rate: float = 3e-4
    """Adam's, for the actor."""
    critic_learning_rate: float = 3e-4
    """Adam's, for both encoders."""
    temperature_learning_rate: float = 3e-4
    """Adam's, for the entropy temperature."""
    target_entropy_per_action: float = -0.5
    """The temperature aims at this entropy per action value, in nats."""
    activation: Literal["swish", "relu"] = "swish"
    """What follows every LayerNorm."""
    layer_norm: bool = True
    """Whether layers are normalised."""
    residual: bool = True
    """Whether a block's input is added to its output."""
    precision: Literal["f32", "bf16"] = "f32"
    """Factors of the networks' matrix products in training; parameters, sums and statistics are float32 always."""
    bf16_on_cpu: bool = False
    """Let bf16 run on a CPU, where it is slower than f32 and good for a trial only."""
    remat: Literal["none", "layers", "blocks"] = "layers"
    """What the backward pass keeps: everything; one array per layer and block; one per block, which takes a second
    forward pass."""
    critic_loss: Literal["forward", "backward", "symmetric", "binary"] = "forward"
    """InfoNCE over goals, over state-action pairs, or over both; or binary NCE, one negative to one positive."""
    energy: Literal["l2", "l2_squared", "dot", "cosine"] = "l2"
    """How near two encodings are."""
    logsumexp_penalty: float = 0.1
    """Weight of the mean squared logsumexp in the critic's loss."""

    epochs: int = 50
    """At most so many evaluations, evenly spaced; each is followed by a snapshot and a published policy."""
    eval_episodes: int = 128
    """Episodes of an evaluation."""

    snapshot_replay: Literal["on", "off"] = "on"
    """Keep the replay in snapshots. Without it they are small, but a resumed run fills the replay anew before it learns
    on, so it does not end as one that was never stopped."""
    resume: bool = False
    """Continue the run in the output folder from its last snapshot."""
    overwrite: bool = False
    """Delete an earlier run in the output folder first."""

    def __post_init__(self) -> None:
        find(self.env)
        if self.eval_env:
            find(self.eval_env)
        self._require_positive()
        if self.replay_capacity < self.unroll:
            raise ConfigError(
                f"replay_capacity {self.replay_capacity} must hold an unroll of {self.unroll} steps; try "
                f"{16 * self.unroll}"
            )
        if not self.replay_min <= self.replay_capacity:
            raise ConfigError(
                f"replay_min {self.replay_min} must not exceed replay_capacity {self.replay_capacity}, "
                "or training would never begin"
            )
        if self.batch_size < 2:
            raise ConfigError("batch_size must be at least 2: the other rows' goals are the negatives; try 256")
        self._require_in_range()
        try:
            check_name(self.policy_name)
            check_depth(self.actor_depth, field="actor_depth")
            check_depth(self.critic_depth, field="critic_depth")
        except SpecError as error:
            raise ConfigError(str(error)) from error
        if self.resume and self.algorithm != "crl":
            raise ConfigError(f"resume works with algorithm crl only, not {self.algorithm}; start anew with overwrite")
        if self.resume and self.overwrite:
            raise ConfigError("resume and overwrite exclude each other: continue the earlier run, or delete it")

    @property
    def policy_name(self) -> str:
        """The name the policy is served under."""
        return self.name or bare_name(self.env)

    @property
    def title(self) -> str:
        """The title of the run's curves: environment, baseline, depth and seed."""
        actor, critic = self.actor_depth, self.critic_depth
        depth = f"depth {actor}" if actor == critic else f"actor depth {actor}, critic depth {critic}"
        algorithm = () if self.algorithm == "crl" else (self.algorithm,)
        return ", ".join((bare_name(self.env), *algorithm, depth, f"seed {self.seed}"))

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps between two rounds of gradient steps, all environments together."""
        return self.num_envs * self.unroll

    @property
    def warmup_iterations(self) -> int:
        """Unrolls that only fill the replay."""
        return max(1, math.ceil(self.replay_min / self.unroll))

    @property
    def iterations(self) -> int:
        """Unrolls of the whole run, the warm-up among them."""
        return max(self.warmup_iterations + 1, math.ceil(self.total_env_steps / self.steps_per_iteration))

    @property
    def iterations_per_epoch(self) -> int:
        """Unrolls between two evaluations."""
        return math.ceil(self.iterations / self.epochs)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON-compatible values."""
        return {name: to_json_value(value) for name, value in dataclasses.asdict(self).items()}

    def spec(self, env: GoalEnv) -> PolicySpec:
        """What the trained policy will promise on `env`."""
        return PolicySpec(
            name=self.policy_name,
            environment=bare_name(self.env),
            state_names=env.spec.state_names,
            goal_names=env.spec.goal_names,
            action_names=env.spec.action_names,
            action_low=env.action_low,
            action_high=env.action_high,
            control_period_s=env.control_period_s,
            success_radius=env.spec.success_radius,
            actor_depth=self.actor_depth,
            actor_width=self.actor_width,
            critic_depth=self.critic_depth,
            critic_width=self.critic_width,
            representation_dim=self.representation_dim,
            energy=self.energy,
            activation=self.activation,
            layer_norm=self.layer_norm,
            residual=self.residual,
        )

    def _require_in_range(self) -> None:
        if not 0 < self.discount < _LARGEST_DISCOUNT:
            raise ConfigError(
                f"discount must lie between 0 and 1, by more than float32 can tell, not {self.discount}; try 0.99"
            )
        if not self.stop_at_share > 0:
            raise ConfigError(f"stop_at_share must be positive, not {self.stop_at_share}; try 0.98, or inf for never")
        for field, usual in (("goal_redraw_probability", 0.02), ("at_goal_redraw_probability", 0.25)):
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"{field} must lie in [0, 1], not {getattr(self, field)}; try {usual}")
        for field in ("logsumexp_penalty", "target_entropy_per_action"):
            if not math.isfinite(getattr(self, field)):
                raise ConfigError(f"{field} must be a finite number, not {getattr(self, field)}")
        if not 0 <= self.seed < _SEEDS:
            raise ConfigError(f"seed must lie in [0, {_SEEDS}), not {self.seed}; try {abs(self.seed) % _SEEDS}")

    def _require_positive(self) -> None:
        for field in dataclasses.fields(self):
            number = getattr(self, field.name)
            if field.name in _POSITIVE and not (number > 0 and (math.isfinite(number) or field.name == "max_minutes")):
                raise ConfigError(f"{field.name} must be a positive number, not {number}; try {field.default}")
            if isinstance(number, int) and number > _LARGEST_COUNT and field.name not in {"total_env_steps", "seed"}:
                raise ConfigError(f"{field.name} must be at most {_LARGEST_COUNT}, not {number}; try {field.default}")


def to_json_value(value: Any) -> Any:
    """Return a field's value as JSON has it: a path as a string, infinity as null."""
    if isinstance(value, Path):
        return str(value)
    return None if value == math.inf else value


_SEEDS = 2**31
_LARGEST_COUNT = 2**31 - 1  # of all whole numbers but the environment steps
_LARGEST_DISCOUNT = 1 - 1e-6  # nearer to 1, the sum of its powers loses its digits

_POSITIVE = frozenset(
    {
        "total_env_steps",
        "max_minutes",
        "num_envs",
        "unroll",
        "episode_length",
        "updates_per_unroll",
        "batch_size",
        "replay_capacity",
        "replay_min",
        "actor_width",
        "critic_width",
        "representation_dim",
        "actor_learning_rate",
        "critic_learning_rate",
        "temperature_learning_rate",
        "epochs",
        "eval_episodes",
    }
)

_POINT_MAZE = {
    "num_envs": 256,
    "unroll": 25,
    "goal_redraw_probability": 0.04,
    "at_goal_redraw_probability": 0.25,
    "updates_per_unroll": 128,
    "batch_size": 256,
    "replay_capacity": 1_000,
    "replay_min": 200,
    "discount": 0.95,
    "actor_width": 64,
    "critic_width": 64,
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "temperature_learning_rate": 1e-3,
}

# Walks within an hour: an entropy that lets the actor move in earnest, a temperature soon found, short episodes.
_ANT_ON_TWO_CORES = {
    "num_envs": 256,
    "unroll": 50,
    "episode_length": 200,
    "goal_redraw_probability": 0.01,
    "updates_per_unroll": 200,
    "batch_size": 256,
    "replay_capacity": 2_000,
    "replay_min": 200,
    "discount": 0.97,
    "target_entropy_per_action": 0.0,
    "actor_width": 128,
    "critic_width": 128,
    "actor_learning_rate": 6e-4,
    "critic_learning_rate": 6e-4,
    "temperature_learning_rate": 3e-3,
    "total_env_steps": 12_000_000,
    "epochs": 60,
    "eval_episodes": 64,
}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "paper": {},
        "point_u_maze": _POINT_MAZE
        | {"total_env_steps": 1_600_000, "max_minutes": 3.7, "stop_at_share": 0.97, "epochs": 50, "eval_episodes": 256},
        "point_big_maze": _POINT_MAZE | {"total_env_steps": 4_000_000, "epochs": 20},
        "point_hardest_maze": _POINT_MAZE | {"total_env_steps": 10_000_000, "epochs": 40},
        "ant_on_two_cores": _ANT_ON_TWO_CORES,
    }
)


def preset_config(env: str, *, out: Path, preset: str | None = None) -> TrainConfig:
    """The defaults for `env` under `preset`, or under the preset of the environment's own name.

    Raises:
        UnknownNameError: there is no such environment or preset.
        EnvError, SpecError: one of your own cannot be imported.
    """
    entry = find(env)
    if preset is None:
        preset = env if env in PRESETS else "paper"
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    lengths: Mapping[str, Any] = {"episode_length": entry.episode_length} if preset != "paper" else {}
    defaults = {**lengths, **PRESETS[preset]}
    return TrainConfig(env=env, out=out, preset=preset, **defaults)
