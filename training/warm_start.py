"""Start a run from a published policy: its actor and critic, with a new optimizer and an empty replay buffer."""

from pathlib import Path

from policy import bundle
from training.algorithms.crl.update import CRL
from training.config import ConfigError, TrainConfig
from training.envs.core.goal_env import GoalEnv
from training.programs import RunState
from training.progress_display import Progress
from training.run_dir import best

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


def with_params_from(config: TrainConfig, env: GoalEnv, state: RunState, *, progress: Progress) -> RunState:
    """Return the `state` of a new run with the parameters of the policy at `config.init_from`.

    Args:
        progress: receives a line that names the policy.

    Raises:
        ConfigError: there is no intact policy, or its first field that does not fit, with both values.
        OSError: a file cannot be read.
    """
    policy = _read(config, env)
    root, version = policy.path.parent, policy.version
    progress.say(
        f"starting from the policy {policy.spec.name}, version {version}, in {policy.path}: "
        f"{best.describe_version(root, version)}"
    )
    return state._replace(train_state=CRL.from_config(config, env).init(policy.params))


def _read(config: TrainConfig, env: GoalEnv) -> bundle.Bundle:
    folder = _version_folder(Path(config.init_from or ""))
    try:
        policy = bundle.read(folder)
    except bundle.BundleError as error:
        raise ConfigError(
            f"init_from cannot be used: {error.problem}; use the folder of another version, or a folder with versions"
        ) from error
    spec = config.policy_spec(env)
    for field in _MUST_AGREE:
        wanted, found = getattr(spec, field), getattr(policy.spec, field)
        if wanted != found:
            raise ConfigError(
                f"init_from {folder} does not fit this run: its {field} is {_shown(found)}, and this run has "
                f"{_shown(wanted)}; change the setting of this run, or use another policy"
            )
    return policy


def _version_folder(folder: Path) -> Path:
    """Return `folder`, or the best version in it if it contains versions, or a folder policies/ with versions."""
    for root in (folder, folder / "policies"):
        version = best.best_version(root)
        if version is not None:
            return root / str(version)
    return folder


def _shown(value: object) -> str:
    return f"{len(value)} values {value!r:.200}" if isinstance(value, tuple) else repr(value)
