"""config.json: the configuration that a run was started with, and what must agree when the run is resumed.

The file has the number of its format, the provenance of the process that wrote it (`provenance`), and one entry for
each field of the configuration. A file of an older format lacks the fields that were added later; `_OLDER` says by
which values the older release behaved.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from policy import whole_file
from training.config import ConfigError, TrainConfig

NAME = "config.json"
FORMAT = 2  # increased by a release that adds a field to the configuration
_FORMAT, _PROVENANCE = "format", "provenance"  # keys that are no fields
_ABSENT = object()
# By format: fields that its files may lack, with the value that the releases of that format behaved by. Format 1 had no
# number and no provenance.
_OLDER: dict[int, dict[str, Any]] = {
    1: {
        "eval_env": "",
        "name": "",
        "target_stay_rate": None,
        "normalize_observations": False,
        "max_diverged_share": 1.0,
        "rows_per_episode": 1,
        "commanded_goals": 0.0,
        "allow_bf16_on_cpu": False,
        "max_eval_share": 1.0,
        "init_from": None,
        "eval_goals": None,
        "keep_policies": 0,  # all
        "snapshot_minutes": None,  # only after evaluations
    },
}
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
        "eval_goals",
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


def write(folder: Path, config: TrainConfig, *, provenance: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write the configuration into `folder`, whole or not at all, also after a power failure."""
    content = {_FORMAT: FORMAT, **config.to_json(), _PROVENANCE: dict(provenance)}
    whole_file.write(folder / NAME, json.dumps(content, indent=2) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """Return the fields of the configuration in `folder`, as JSON values. Those that its format lacked are filled in.

    Raises:
        ConfigFileError: it is not a JSON object, or of a newer release.
    """
    stored = _read(folder)
    known = stored.pop(_FORMAT, 1)
    stored.pop(_PROVENANCE, None)
    if not isinstance(known, int) or known > FORMAT:
        raise ConfigFileError(
            f"{folder / NAME} has format {known!r:.80}, and this release reads up to format {FORMAT}; use the release "
            "that wrote it, or a newer one (docs/upgrading.md)"
        )
    lacked = {name: value for number in range(FORMAT, known - 1, -1) for name, value in _OLDER.get(number, {}).items()}
    return lacked | stored


def provenance(folder: Path) -> dict[str, Any]:
    """Return the provenance of the process that last trained in `folder`; empty if it is not known.

    Raises:
        ConfigFileError: the file is not a JSON object.
    """
    stored = _read(folder).get(_PROVENANCE, {}) if (folder / NAME).exists() else {}
    return stored if isinstance(stored, dict) else {}


def _read(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    try:
        return dict(json.loads(path.read_bytes()).items())
    except (AttributeError, RecursionError, ValueError) as error:
        raise ConfigFileError(
            f"{path} cannot be read as a run's configuration ({error}); repair it, or use another --out"
        ) from error


def to_resume(folder: Path) -> TrainConfig:
    """Return the configuration that resumes the run in `folder`, wherever the folder was when the run began.

    Fields that no longer exist are ignored.

    Raises:
        ConfigFileError: there is no run, or its file cannot be read, lacks a field or has values that are not valid.
    """
    if not (folder / NAME).is_file():
        raise ConfigFileError(
            f"{folder} has no run to resume; use another --out, or leave out --resume if the folder is new or empty"
        )
    stored = read(folder)
    if not is_of_a_run(stored):
        raise ConfigFileError(f"{folder / NAME} is not the configuration of a run; use another --out")
    values: dict[str, Any] = {"preset": "paper"}
    now: dict[str, Any] = {"out": folder, "resume": True, "overwrite": False}
    for field in dataclasses.fields(TrainConfig):
        if field.name in stored:
            values[field.name] = _from_json_value(stored[field.name], default=field.default)
        elif field.name not in {"preset", *now}:
            raise ConfigFileError(f"{folder / NAME} lacks {field.name}; put it back (docs/upgrading.md)")
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

    Args:
        earlier: as `read` returns it.

    Raises:
        ConfigError: naming the first such field, its earlier value and its value now.
    """
    for name, now in config.to_json().items():
        if name in _MAY_CHANGE or earlier.get(name, _ABSENT) == now:
            continue
        if name not in earlier:
            raise ConfigError(f"{NAME} of the run to resume lacks {name}; put it back (docs/upgrading.md)")
        before = earlier[name]
        by_preset = earlier.get("preset", config.preset) != config.preset
        cause = f"with --preset {config.preset}" if by_preset else "now"
        advice = "leave out --preset" if by_preset else "leave it out" if before is None else f"use {before!r}"
        raise ConfigError(
            f"{name} was {_shown(before)} in the run to resume and is {_shown(now)} {cause}; {advice}, or start a new "
            f"run with another --out. Only these flags may change with --resume: {', '.join(_flags_that_may_change())}"
        )


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _flags_that_may_change() -> list[str]:
    """Return the flags that a resumed run may have other values of, in the order of the fields."""
    fields = [field.name for field in dataclasses.fields(TrainConfig) if field.name in _MAY_CHANGE]
    return [f"--{name.replace('_', '-')}" for name in fields if name not in {"out", "resume", "overwrite"}]


def difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return the first field, except seed and name, in which two configurations learn differently, or None."""
    names = sorted((one.keys() | other.keys()) - (_MAY_CHANGE - _LEARNING_RATES) - {"seed", "name"})
    return next((name for name in names if one.get(name) != other.get(name)), None)
