"""TrainConfig: every setting of a training run, complete and checked when it is constructed."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from policy.command_line import local_path, quoted
from policy.spec import PolicySpec, SpecError, check_depth, check_name
from training.envs.core.goal_env import GoalEnv
from training.envs.registry import bare_name, find
from training.presets.settings import PRESETS, preset_fields

_REQUIRED = tyro.conf.arg(help_behavior_hint="(required)")  # instead of the default of the preset


class ConfigError(Exception):
    """A combination of settings that cannot work; the message names the field and a value that would work."""


def _with_preset(config: type["TrainConfig"]) -> type["TrainConfig"]:
    """Let a configuration take the values of its preset for what is not given."""
    given_init = config.__init__

    @functools.wraps(given_init)
    def init(self: "TrainConfig", *, env: str, preset: str = "", **given: Any) -> None:
        name, defaults = _preset_values(env, preset)
        values: dict[str, Any] = {"out": Path("runs") / bare_name(env), **defaults, **given}
        given_init(self, env=env, preset=name, **values)

    config.__init__ = init
    return config


@_with_preset
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a goal-reaching policy with contrastive RL and publish it.

    The algorithm is that of "1000 Layer Networks for Self-Supervised RL" (arXiv 2503.14858). What is not given has the
    value of the preset; the defaults below are those of preset paper. `TrainConfig(env="point_u_maze")` is the
    configuration of the command line with `--env point_u_maze --out runs/point_u_maze`.

    Raises:
        ConfigError: a value is out of range, or does not fit another one.
        UnknownNameError: no such environment or preset.
        EnvError, SpecError: a custom environment cannot be imported.
    """

    env: Annotated[str, _REQUIRED]
    """Environment to train on. MODULE:NAME selects one of your own, which the module registers."""
    eval_env: str = ""
    """Environment to evaluate on, with the same state, goal and actions. Empty: the one to train on."""
    out: Annotated[Path, _REQUIRED] = Path("runs")
    """Folder for the run: policies/, snapshots/, metrics.jsonl, curves.png, TensorBoard events."""
    algorithm: Literal["crl", "sac", "ppo"] = "crl"
    """Contrastive RL (crl), or a baseline from brax that is rewarded at the goal. A baseline publishes no policy."""
    preset: str = ""
    """Named defaults for the other flags. Empty: the preset with the environment's name, or paper without one."""
    name: str = ""
    """Name of the published policy; clients select the policy by this name. Empty: the environment's name."""
    seed: int = 0
    """Seed of every random number in the run."""
    impl: Literal["jax", "warp"] = "jax"
    """MJX implementation of the physics: JAX, or the kernels of MuJoCo Warp."""

    total_env_steps: int = 100_000_000
    """Environment steps, of all environments together, after which training ends."""
    max_minutes: float = math.inf
    """Minutes from the start of the command to the last publication; with --resume auto, of all commands together."""
    target_stay_rate: float = math.inf
    """Training ends after two evaluations in a row with at least this eval/stay, up to 1; inf: never."""
    num_envs: int = 512
    """Environments that run in parallel."""
    unroll_length: int = 62
    """Steps that every environment takes between two rounds of gradient steps."""
    episode_length: int = 1000
    """Steps after which an episode ends."""
    resample_goal_probability: float = 0.0
    """Probability, at each training step away from the goal, of replacing the goal by a new one."""
    resample_at_goal_probability: float = 0.0
    """The same probability at steps within the success radius, so that robots move on instead of resting there."""

    updates_per_unroll: int = 800
    """Gradient steps after each unroll."""
    batch_size: int = 512
    """Rows in a gradient step. The goals of the other rows are a row's negative examples."""
    max_replay_size: int = 10_000
    """Steps in the replay buffer, per environment."""
    min_replay_size: int = 1_000
    """Steps in the replay buffer, per environment, before the first gradient step."""
    normalize_observations: bool = False
    """Normalize states with their mean and standard deviation in the steps before the first gradient step."""
    max_diverged_share: float = 0.05
    """Largest share of environments whose physics may diverge between two evaluations; one always may."""
    discount: float = 0.99
    """A hindsight goal lies k steps ahead with a probability proportional to discount^k."""
    rows_per_episode: int = 1
    """Rows of a batch that come from the same episode. With binary NCE they count as negatives with full weight."""
    commanded_goals: float = 0.0
    """Share of the actor's rows that get a new goal of the task. The critic's rows keep their hindsight goals."""

    actor_depth: int = 4
    """Dense layers in the actor's residual blocks, a multiple of 4."""
    actor_width: int = 256
    """Units in each layer of the actor."""
    critic_depth: int = 4
    """Dense layers in the residual blocks of each of the critic's two encoders, a multiple of 4."""
    critic_width: int = 256
    """Units in each layer of the encoders."""
    representation_dim: int = 64
    """Length of the critic's two encodings, which the energy compares."""
    actor_learning_rate: float = 3e-4
    """Learning rate of Adam for the actor."""
    critic_learning_rate: float = 3e-4
    """Learning rate of Adam for both encoders."""
    temperature_learning_rate: float = 3e-4
    """Learning rate of Adam for the entropy temperature."""
    target_entropy_per_action: float = -0.5
    """Entropy per action value that the temperature aims at, in nats."""
    activation: Literal["swish", "relu"] = "swish"
    """Activation function after every LayerNorm."""
    layer_norm: bool = True
    """Normalize every layer with LayerNorm."""
    residual: bool = True
    """Add the input of each block to its output."""
    precision: Literal["f32", "bf16"] = "f32"
    """Precision of the factors in matrix products during training. Parameters, sums and statistics stay float32."""
    allow_bf16_on_cpu: bool = False
    """Allow bf16 on a CPU, where it is slower than f32 and only useful for a test."""
    remat: Literal["none", "layers", "blocks"] = "layers"
    """none: keep every array for the backward pass (fastest). layers: one per layer. blocks: one per block."""
    critic_loss: Literal["forward", "backward", "symmetric", "binary"] = "forward"
    """InfoNCE over goals (forward), over state-action pairs (backward), the mean of both (symmetric), or binary NCE."""
    energy: Literal["l2", "l2_squared", "dot", "cosine"] = "l2"
    """How the critic compares two encodings: negative distance, negative squared distance, dot product or cosine."""
    logsumexp_penalty: float = 0.1
    """Weight of the mean squared logsumexp in the critic's loss."""

    num_evals: int = 50
    """Maximum number of evaluations, evenly spaced. After each, training saves a snapshot and publishes the policy."""
    eval_episodes: int = 128
    """Episodes per evaluation."""
    eval_goals: Path | None = None
    """File with the goals to evaluate on, CSV or .npy, one goal a row. Results by goal go to eval_goals/ in the run."""
    max_eval_share: float = 0.2
    """Largest fraction of the run's time for evaluations. It leaves some out, but not the first two or the last."""

    init_from: Path | None = None
    """Start with the actor and critic of a published policy: its folder, or a policies/ folder for the best one."""
    keep_policies: int = 10
    """Newest policies to keep; the best one stays, too, and older ones are deleted. 0 keeps all."""
    snapshot_minutes: float = 10.0
    """Minutes between two snapshots, apart from those after evaluations. inf: only after evaluations."""
    snapshot_replay: bool = True
    """Save the replay buffer in snapshots. If not, snapshots are small, but a resumed run refills the buffer first."""
    resume: Annotated[bool | Literal["auto"], tyro.conf.arg(metavar="[auto] | --no-resume")] = False
    """Continue the run in the output folder from its last snapshot. With auto: begin it if there is none."""
    overwrite: bool = False
    """Delete an earlier run in the output folder first."""

    def __post_init__(self) -> None:
        self._expand_paths()
        find(self.env)
        if self.eval_env:
            find(self.eval_env)
        self._require_positive()
        self._require_in_range()
        self._require_replay_sizes()
        if self.batch_size < 2:
            raise ConfigError(
                "batch_size must be 2 or more, because the goals of the other rows are the negative examples, got "
                f"{self.batch_size}; try 256"
            )
        if self.batch_size % self.rows_per_episode:
            raise ConfigError(
                f"batch_size {self.batch_size} must be a multiple of rows_per_episode {self.rows_per_episode}; try "
                f"{_nearby_divisors(self.batch_size, self.rows_per_episode)}"
            )
        try:
            check_name(self.published_name, field="name")
            check_depth(self.actor_depth, field="actor_depth")
            check_depth(self.critic_depth, field="critic_depth")
        except SpecError as error:
            raise ConfigError(str(error)) from error
        if self.resume and self.algorithm != "crl":
            raise ConfigError(
                f"resume needs algorithm crl, got {self.algorithm}: a baseline saves no snapshots; start again with "
                "--overwrite"
            )
        for name in ("init_from", "normalize_observations"):
            if getattr(self, name) and self.algorithm != "crl":
                raise ConfigError(f"{name} needs algorithm crl, got {self.algorithm}; leave out one of the two")
        if self.resume and self.overwrite:
            raise ConfigError("resume and overwrite exclude each other; --resume continues, --overwrite deletes")

    @property
    def published_name(self) -> str:
        """The name of the published policies: `name`, or the environment's if it is empty."""
        return self.name or bare_name(self.env)

    @property
    def continuation(self) -> str:
        """What continues the run after it was stopped."""
        return "the same command" if self.resume == "auto" else f"--resume --out {quoted(self.out)}"

    @property
    def commanded_rows(self) -> int:
        """Rows of a batch in which the actor's goal is a commanded one."""
        return round(self.commanded_goals * self.batch_size)

    @property
    def title(self) -> str:
        """The title of the run's curves: environment, baseline, depth and seed."""
        return f"{title_without_seed(vars(self))}, seed {self.seed}"

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps between two rounds of gradient steps, of all environments together."""
        return self.num_envs * self.unroll_length

    @property
    def warmup_iterations(self) -> int:
        """Iterations that only fill the replay buffer."""
        return max(1, math.ceil(self.min_replay_size / self.unroll_length))

    @property
    def iterations(self) -> int:
        """Iterations of the whole run, warm-up included."""
        return max(self.warmup_iterations + 1, math.ceil(self.total_env_steps / self.steps_per_iteration))

    @property
    def iterations_per_epoch(self) -> int:
        """Iterations between two evaluations."""
        return math.ceil(self.iterations / self.num_evals)

    @property
    def gradient_steps(self) -> int:
        """Gradient steps of the whole run."""
        return (self.iterations - self.warmup_iterations) * self.updates_per_unroll

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON-compatible values."""
        return {name: to_json_value(value) for name, value in dataclasses.asdict(self).items()}

    def policy_spec(self, env: GoalEnv) -> PolicySpec:
        """Return the specification of a policy trained on `env`, without the statistics that training finds."""
        return PolicySpec(
            name=self.published_name,
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
            actuator_kind=env.actuator_kind,
            rest_action=env.rest_action,
            action_meaning=env.spec.action_meaning,
            max_action_change=env.spec.max_action_change,
            state_quaternions=env.spec.state_quaternions,
            goal_quaternions=env.spec.goal_quaternions,
            normalize_observations=self.normalize_observations,
            normalization_mean=(0.0,) * env.state_size if self.normalize_observations else (),
            normalization_std=(1.0,) * env.state_size if self.normalize_observations else (),
        )

    def _expand_paths(self) -> None:
        try:
            for field in dataclasses.fields(self):
                if isinstance(path := getattr(self, field.name), Path):
                    object.__setattr__(self, field.name, local_path(path, name=field.name))
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _require_positive(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _POSITIVE and not (value > 0 and (math.isfinite(value) or field.name in _MAY_BE_INF)):
                raise ConfigError(f"{field.name} must be a positive number, got {value}; try {field.default}")
            if isinstance(value, int) and value > _MAX_INT and field.name not in {"total_env_steps", "seed"}:
                raise ConfigError(f"{field.name} must be {_MAX_INT} or less, got {value}; try {field.default}")

    def _require_in_range(self) -> None:
        if not 0 < self.discount < _MAX_DISCOUNT:
            raise ConfigError(f"discount must be above 0 and below {_MAX_DISCOUNT}, got {self.discount}; try 0.99")
        if not (0 < self.target_stay_rate <= 1 or self.target_stay_rate == math.inf):
            raise ConfigError(
                f"target_stay_rate must be above 0 and at most 1, got {self.target_stay_rate}; try 0.9, or inf to "
                "train on"
            )
        shares = {"resample_goal_probability": 0.02, "resample_at_goal_probability": 0.25, "commanded_goals": 0.5}
        for field, usual in shares.items():
            if not 0 <= getattr(self, field) <= 1:
                raise ConfigError(f"{field} must be from 0 to 1, got {getattr(self, field)}; try {usual}")
        if not 0 <= self.max_diverged_share <= 1:
            raise ConfigError(f"max_diverged_share must be from 0 to 1, got {self.max_diverged_share}; try 0.05")
        if not 0 < self.max_eval_share <= 1:
            raise ConfigError(
                f"max_eval_share must be above 0 and at most 1, got {self.max_eval_share}; try 0.2, or 1 for no limit"
            )
        for field, usual in (("logsumexp_penalty", 0.1), ("target_entropy_per_action", -0.5)):
            if not math.isfinite(getattr(self, field)):
                raise ConfigError(f"{field} must be a finite number, got {getattr(self, field)}; try {usual}")
        if self.keep_policies < 0:
            raise ConfigError(f"keep_policies must be 1 or more, or 0 to keep all, got {self.keep_policies}; try 10")
        if not 0 <= self.seed < _SEEDS:
            raise ConfigError(f"seed must be from 0 to {_SEEDS - 1}, got {self.seed}; try {abs(self.seed) % _SEEDS}")

    def _require_replay_sizes(self) -> None:
        if self.max_replay_size < self.unroll_length:
            raise ConfigError(
                f"max_replay_size must be unroll_length ({self.unroll_length}) or more, got {self.max_replay_size}; "
                f"try {16 * self.unroll_length}"
            )
        if self.min_replay_size > self.max_replay_size:
            raise ConfigError(
                f"min_replay_size must be max_replay_size ({self.max_replay_size}) or less, or training would never "
                f"start, got {self.min_replay_size}; try {math.ceil(self.max_replay_size / 10)}"
            )


def _nearby_divisors(number: int, near: int) -> str:
    """Return the largest divisor of `number` below `near` and the smallest one above it, in words."""
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    divisors = sorted({*small, *(number // divisor for divisor in small)})
    below = [divisor for divisor in divisors if divisor < near][-1:]
    above = [divisor for divisor in divisors if divisor > near][:1]
    return " or ".join(str(divisor) for divisor in below + above)


def title_without_seed(fields: Mapping[str, Any]) -> str:
    """Return environment, baseline and depth of a configuration with these `fields`, for a title."""
    actor, critic = fields["actor_depth"], fields["critic_depth"]
    depth = f"depth {actor}" if actor == critic else f"actor depth {actor}, critic depth {critic}"
    algorithm = () if fields["algorithm"] == "crl" else (fields["algorithm"],)
    return ", ".join((bare_name(fields["env"]), *algorithm, depth))


def to_json_value(value: Any) -> Any:
    """Return a field's value as JSON has it: a path as a string, infinity as null."""
    if isinstance(value, Path):
        return str(value)
    return None if value == math.inf else value


_SEEDS = 2**31
_MAX_INT = 2**31 - 1  # of all integers but environment steps, which stay on the host
_MAX_DISCOUNT = 1 - 1e-6  # closer to 1, float32 loses the digits of a sum of its powers

_MAY_BE_INF = frozenset({"max_minutes", "snapshot_minutes"})
_POSITIVE = frozenset(
    {
        "total_env_steps",
        "max_minutes",
        "snapshot_minutes",
        "num_envs",
        "unroll_length",
        "episode_length",
        "updates_per_unroll",
        "batch_size",
        "rows_per_episode",
        "max_replay_size",
        "min_replay_size",
        "actor_width",
        "critic_width",
        "representation_dim",
        "actor_learning_rate",
        "critic_learning_rate",
        "temperature_learning_rate",
        "num_evals",
        "eval_episodes",
    }
)


def _preset_values(env: str, preset: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a preset and its values for `env`. If `preset` is empty: the one named like `env`, or paper.

    Raises:
        UnknownNameError: no such environment or preset.
        EnvError, SpecError: a custom environment cannot be imported.
    """
    entry = find(env)
    preset = preset or (env if env in PRESETS else "paper")
    return preset, preset_fields(preset, env=bare_name(env), episode_length=entry.episode_length)
