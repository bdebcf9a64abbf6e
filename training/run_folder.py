"""The folder of a run: one process at a time, refused while something else is in it, deleted only when told to.

A process claims a folder by a lock on the folder itself, which the kernel releases however the process ends.
"""

import contextlib
import fcntl
import functools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from training.config import ConfigError, TrainConfig

_SETTINGS = "config.json"
_DRAFT = f".{_SETTINGS}"  # of the configuration, while it is being written
_OURS = frozenset(
    {_SETTINGS, _DRAFT, "metrics.jsonl", "curves.png", "tensorboard", "policies", "snapshots"}
    | {"server.log", "summary.json", "paths.png"}  # of the demonstration, beside its policy
)
_OUR_SETTINGS = frozenset({"env", "seed", "num_envs", "batch_size", "actor_depth"})  # some that every run has noted
_CHANGEABLE = frozenset(
    {"out", "max_minutes", "stop_at_share", "total_env_steps", "epochs", "eval_episodes", "resume", "overwrite"}
)


class OutputFolderError(Exception):
    """The output folder is in use, holds an earlier run, or none to resume; the message says what to do."""


@contextlib.contextmanager
def claimed(config: TrainConfig) -> Generator[Callable[[], None]]:
    """The run's folder for this process alone, for as long as the context lasts.

    What it gives is a function that takes the folder over: it makes room if `config` overwrites an earlier run, and
    notes the configuration. Until it is called, nothing in the folder is written or deleted.

    Raises:
        OutputFolderError: another process trains in it, it is occupied, or there is nothing to resume.
        ConfigError: the run to resume had other settings.
        OSError: it cannot be made or written.
    """
    _check(config)
    config.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as locks:
        locks.enter_context(_lock(config.out))
        _check(config)  # again: what another process did in between counts
        yield functools.partial(_take, config, locks)


@contextlib.contextmanager
def _lock(folder: Path) -> Generator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        detail = f"another process is training in {folder}; wait for its end, stop it, or name another folder"
        raise OutputFolderError(detail) from error
    finally:
        os.close(descriptor)


def _check(config: TrainConfig) -> None:
    """Refuse a folder that is in use, unless it holds a run and `config` says what is to become of it."""
    entries = {entry.name for entry in config.out.iterdir()} - {_DRAFT} if config.out.exists() else set[str]()
    if config.resume:
        if _SETTINGS not in entries:
            raise OutputFolderError(f"{config.out} holds no run to resume; name another, or leave out --resume")
        _require_same_run(_settings(config.out), config)
    elif entries and not config.overwrite:
        raise OutputFolderError(
            f"{config.out} is not empty; --resume continues the run in it, --overwrite deletes it; or name another"
        )
    elif entries and not (_SETTINGS in entries and _settings(config.out).keys() >= _OUR_SETTINGS):
        raise OutputFolderError(f"{config.out} holds something other than a run, which is not deleted; name another")
    elif strangers := sorted(entries - _OURS):
        found = ", ".join(strangers[:3])
        raise OutputFolderError(f"{config.out} holds {found} besides a run, which is not deleted; move it away first")


def _settings(folder: Path) -> dict[str, Any]:
    """What the run in `folder` noted of its configuration."""
    path = folder / _SETTINGS
    try:
        return dict(json.loads(path.read_bytes()).items())
    except (AttributeError, RecursionError, ValueError) as error:
        detail = f"{path} cannot be read as a run's settings ({error}); mend it, move the folder, or name another"
        raise OutputFolderError(detail) from error


def _take(config: TrainConfig, locks: contextlib.ExitStack) -> None:
    """Make the run's folder, in the place of one to overwrite, and note the configuration in it."""
    if config.overwrite and any(config.out.iterdir()):
        folder = config.out.resolve()  # of a link, the folder that it points to
        doomed = folder.with_name(f".{folder.name}.deleting-{uuid.uuid4().hex[:8]}")
        folder.rename(doomed)  # at once: what is left of it after a kill is no longer taken for a run
        folder.mkdir()
        locks.enter_context(_lock(folder))
        shutil.rmtree(doomed)
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
