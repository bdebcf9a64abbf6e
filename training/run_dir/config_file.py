"""config.json: the configuration that a run was started with, and what must agree when the run is resumed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from training.config import ConfigError, TrainConfig, to_json_value

NAME = "config.json"
DRAFT_NAME = f".{NAME}"  # of the file while it is being written
_IN_EVERY_RUN = frozenset({"env", "seed", "num_envs", "batch_size", "actor_depth"})  # fields of every run's file
_MAY_CHANGE = frozenset(
    {  # fields that do not change what the resumed run learns from one step to the next
        "out",
        "preset",
        "max_minutes",
        "target_stay_rate",
        "total_env_steps",
        "num_evals",
        "eval_episodes",
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
            raise ConfigError(
                f"{name} was {before!r} in the run to resume and is {now!r} now; use {before!r}, or start a new run "
                "with another --out"
            )


def difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return the first field besides the seed in which two configurations learn differently, or None."""
    names = sorted((one.keys() | other.keys()) - _MAY_CHANGE - {"seed"})
    return next((name for name in names if one.get(name) != other.get(name)), None)
