"""Start a run from a published policy: its actor and critic, with a new optimizer and an empty replay buffer."""

from pathlib import Path

from policy import bundle
from policy.networks import PolicyParams
from training.algorithms.crl.update import CRL
from training.config import ConfigError, TrainConfig
from training.envs.core.goal_env import GoalEnv
from training.programs import RunState

# What parameters are trained for. Limits, period and success radius may differ: training adapts to them.
_MUST_AGREE = (
    "state_names",
    "goal_names",
    "action_names",
    "actuator_kind",
    "action_meaning",
    "action_chunk",
    "state_quaternions",
    "goal_quaternions",
    "critic",
    "actor_depth",
    "actor_width",
    "critic_depth",
    "critic_width",
    "representation_dim",
    "energy",
    "activation",
    "layer_norm",
    "residual",
    "normalize_observations",
)


def with_params_from(config: TrainConfig, env: GoalEnv, state: RunState) -> RunState:
    """Return the `state` of a new run with the parameters of the policy at `config.init_from`.

    Raises:
        ConfigError: there is no intact policy, or its first field that does not fit, with both values.
        OSError: a file cannot be read.
    """
    params = _read(config, env)
    return state._replace(train_state=CRL.from_config(config, env).init(params))


def _read(config: TrainConfig, env: GoalEnv) -> PolicyParams:
    folder = _version_folder(Path(config.init_from or ""))
    try:
        policy = bundle.read(folder)
    except bundle.BundleError as error:
        raise ConfigError(f"init_from cannot be read: {error}; use the folder of another version") from error
    spec = config.policy_spec(env)
    for field in _MUST_AGREE:
        wanted, found = getattr(spec, field), getattr(policy.spec, field)
        if wanted != found:
            raise ConfigError(
                f"init_from {folder} does not fit this run: its {field} is {_shown(found)}, and this run has "
                f"{_shown(wanted)}; change the setting of this run, or use another policy"
            )
    return policy.params


def _version_folder(folder: Path) -> Path:
    """Return `folder`, or the newest version in it if it contains versions, or a folder policies/ with versions."""
    for root in (folder, folder / "policies"):
        if versions := bundle.versions(root):
            return root / str(versions[-1])
    return folder


def _shown(value: object) -> str:
    return f"{len(value)} values {value!r:.200}" if isinstance(value, tuple) else repr(value)
