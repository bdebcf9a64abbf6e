"""config.json: the configuration that a run was started with, and what must agree when the run is resumed."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from training.config import ConfigError, TrainConfig, to_json_value

NAME = "config.json"
DRAFT_NAME = f".{NAME}"  # of the file while it is being written
_IN_EVERY_RUN = frozenset({"env", "seed", "num_envs", "batch_size", "actor_depth"})  # fields of every run's file
_LEARNING_RATES = frozenset({"actor_learning_rate", "critic_learning_rate", "temperature_learning_rate"})
_MAY_CHANGE = _LEARNING_RATES | frozenset(  # a run may need lower learning rates to go on
    {  # fields that do not change what the resumed run learns from
        "out",
        "preset",
        "max_minutes",
        "target_stay_rate",
        "total_env_steps",
        "num_evals",
        "eval_episodes",
        "max_diverged_share",
        "max_eval_share",
        "keep_policies",
        "snapshot_minutes",
        "allow_bf16_on_cpu",
        "resume",
        "overwrite",
    }
)


class ConfigFileError(Exception):
    """A config.json that cannot be read as a run's configuration."""


def write(folder: Path, config: TrainConfig) -> None:
    """Write the configuration into `folder`, replacing an earlier one only when the new one is complete."""
    draft = folder / DRAFT_NAME
    draft.write_text(json.dumps(config.to_json(), indent=2) + "\n")
    draft.rename(folder / NAME)


def read(folder: Path) -> dict[str, Any]:
    """Return the fields of the configuration in `folder`, as JSON values.

    Raises:
        ConfigFileError: it is not a JSON object.
    """
    path = folder / NAME
    try:
        return dict(json.loads(path.read_bytes()).items())
    except (AttributeError, RecursionError, ValueError) as error:
        raise ConfigFileError(
            f"{path} cannot be read as a run's configuration ({error}); repair it, or use another --out"
        ) from error


def to_resume(folder: Path) -> TrainConfig:
    """Return the configuration that resumes the run in `folder`, wherever the folder was when the run began.

    Fields that no longer exist are ignored. A field that the file lacks has its default.

    Raises:
        ConfigFileError: there is no run, or its file cannot be read or has values that are not valid.
    """
    if not (folder / NAME).is_file():
        raise ConfigFileError(f"{folder} has no run to resume; use another --out, or leave out --resume")
    stored = read(folder)
    if not is_of_a_run(stored):
        raise ConfigFileError(f"{folder / NAME} is not the configuration of a run; use another --out")
    values: dict[str, Any] = {"preset": "paper"}
    now: dict[str, Any] = {"out": folder, "resume": True, "overwrite": False}
    for field in dataclasses.fields(TrainConfig):
        if field.name in stored:
            values[field.name] = _from_json_value(stored[field.name], default=field.default)
        elif field.name != "preset":
            values[field.name] = field.default  # not the preset's value, which may be younger than the file
    try:
        return TrainConfig(**(values | now))
    except (ConfigError, TypeError) as error:
        raise ConfigFileError(f"{folder / NAME} has a value that is not valid: {error}; repair it") from error


def _from_json_value(value: Any, *, default: Any) -> Any:
    """Return a field's value as `TrainConfig` has it; the reverse of `to_json_value`."""
    if value is None:
        return math.inf if isinstance(default, float) else None
    return Path(value) if default is None or isinstance(default, Path) else value


def is_of_a_run(fields: dict[str, Any]) -> bool:
    """Return whether `fields` has the fields that every run's configuration has."""
    return fields.keys() >= _IN_EVERY_RUN


def require_same_run(earlier: dict[str, Any], config: TrainConfig) -> None:
    """Refuse to resume a run if a field that decides what it learns has changed.

    If `earlier` lacks a field, the field was added after the run began; the run used its default.

    Raises:
        ConfigError: naming the first such field, its earlier value and its value now.
    """
    defaults = {field.name: to_json_value(field.default) for field in dataclasses.fields(config)}
    for name, now in config.to_json().items():
        before = earlier.get(name, defaults[name])
        if name not in _MAY_CHANGE and before != now:
            by_preset = earlier.get("preset", config.preset) != config.preset
            cause, advice = (
                (f"with --preset {config.preset}", "leave out --preset") if by_preset else ("now", f"use {before!r}")
            )
            raise ConfigError(
                f"{name} was {before!r} in the run to resume and is {now!r} {cause}; {advice}, or start a new run with "
                f"another --out. Only these flags may change with --resume: {', '.join(_flags_that_may_change())}"
            )


def _flags_that_may_change() -> list[str]:
    """Return the flags that a resumed run may have other values of, in the order of the fields."""
    fields = [field.name for field in dataclasses.fields(TrainConfig) if field.name in _MAY_CHANGE]
    return [f"--{name.replace('_', '-')}" for name in fields if name not in {"out", "resume", "overwrite"}]


def difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return the first field, except seed and name, in which two configurations learn differently, or None."""
    names = sorted((one.keys() | other.keys()) - (_MAY_CHANGE - _LEARNING_RATES) - {"seed", "name"})
    return next((name for name in names if one.get(name) != other.get(name)), None)
