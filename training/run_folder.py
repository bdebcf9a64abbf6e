"""The folder of a run: refused while something else is in it, taken over only as the configuration says."""

import json
import shutil
import uuid
from typing import Any

from training.config import ConfigError, TrainConfig

_SETTINGS = "config.json"
_DRAFT = f".{_SETTINGS}"  # of the configuration, while it is being written
_CHANGEABLE = frozenset(
    {"out", "max_minutes", "stop_at_share", "total_env_steps", "epochs", "eval_episodes", "resume", "overwrite"}
)


class OutputFolderError(Exception):
    """The output folder holds an earlier run, or none to resume; the message says which flag to give."""


def check(config: TrainConfig) -> None:
    """Refuse a folder that is in use, unless it holds a run and `config` says what is to become of it.

    Raises:
        OutputFolderError: it is in use, or there is nothing to resume.
        ConfigError: the run to resume had other settings.
    """
    settings_path = config.out / _SETTINGS
    occupied = config.out.exists() and any(entry.name != _DRAFT for entry in config.out.iterdir())
    if config.resume:
        if not settings_path.exists():
            raise OutputFolderError(f"{config.out} holds no run to resume; leave out --resume to start one")
        try:
            earlier = dict(json.loads(settings_path.read_text()))
        except (TypeError, ValueError) as error:
            detail = f"{settings_path} cannot be read ({error}), so there is no resuming; start anew with --overwrite"
            raise OutputFolderError(detail) from error
        _require_same_run(earlier, config)
    elif occupied and not config.overwrite:
        raise OutputFolderError(
            f"{config.out} is not empty; --resume continues the run in it, --overwrite deletes it; or name another"
        )
    elif occupied and not settings_path.exists():
        raise OutputFolderError(f"{config.out} holds something other than a run, which is not deleted; name another")


def take(config: TrainConfig) -> None:
    """Make the run's folder, in the place of one to overwrite, and note the configuration in it."""
    if config.overwrite and config.out.exists():
        doomed = config.out.with_name(f".{config.out.name}.deleting-{uuid.uuid4().hex[:8]}")
        config.out.rename(doomed)  # at once: what is left of it after a kill is no longer taken for a run
        shutil.rmtree(doomed)
    config.out.mkdir(parents=True, exist_ok=True)
    draft = config.out / _DRAFT
    draft.write_text(json.dumps(config.to_json(), indent=2) + "\n")
    draft.rename(config.out / _SETTINGS)


def _require_same_run(earlier: dict[str, Any], config: TrainConfig) -> None:
    now = config.to_json()
    changed = [name for name in now if name not in _CHANGEABLE and earlier.get(name) != now[name]]
    if changed:
        name = changed[0]
        before, after = earlier.get(name), now[name]
        raise ConfigError(
            f"{name} was {before!r} in the run to resume and is {after!r} now; use the same, or a new --out"
        )
