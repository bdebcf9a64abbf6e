"""Claim the folder of a run for one process, and delete an earlier run in it only if asked to.

The lock is an flock on the folder itself. The kernel releases it however the process ends. Where a folder cannot be
locked, the lock is on a file in it: NFS locks only what is open for writing, which a folder never is.
"""

import contextlib
import fcntl
import functools
import os
import re
import shutil
import uuid
from collections.abc import Callable, Generator
from pathlib import Path

from policy import whole_file
from policy.verified_folder import named
from training.config import TrainConfig
from training.run_dir import config_file, elapsed, goal_report, metrics_log, references
from training.run_dir.provenance import DIFFS, Origin

_LOCK_NAME = ".lock"
_FILES = (config_file.NAME, elapsed.NAME, metrics_log.NAME, metrics_log.CURVES_NAME, references.NAME)
_DRAFTS = frozenset(map(whole_file.draft_name, _FILES))
_ENTRIES = (
    _DRAFTS.union(_FILES, {"tensorboard", "policies", "snapshots", DIFFS, goal_report.FOLDER})
    | {"server.log", "state", "summary.json", "paths.png"}  # of the demonstration, next to its policies
)
# Without config.json, what a process has left that was killed before it had begun a run; earlier builds stored the
# changes of a checkout first.
_BEFORE_THE_RUN = frozenset({whole_file.draft_name(config_file.NAME), _LOCK_NAME, DIFFS})
_MAX_PATH_BYTES = 3_800  # the system allows 4,095; the deepest file of a policy needs up to 200 more


class RunDirError(Exception):
    """The output folder is in use, not empty, or has no run to resume; the message says what to do."""


class FolderInUseError(RunDirError):
    """Another process trains in the folder; once it has ended, the same command works."""


@contextlib.contextmanager
def claimed(config: TrainConfig) -> Generator[Callable[[Origin], None]]:
    """Hold the lock on the run's folder for as long as the context lasts.

    The context's value is a function that takes the folder over: it deletes an earlier run if `config.overwrite`, and
    writes config.json, with the provenance that it is given. Until it is called, nothing in the folder is written or
    deleted. What is left of runs that killed processes were deleting is removed.

    Raises:
        RunDirError: another process trains in it, it is not empty, or there is nothing to resume.
        ConfigError: the run to resume had a different configuration.
        OSError: it cannot be created or written.
    """
    require_usable(config)
    config.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as locks:
        locks.enter_context(_lock(config.out))
        require_usable(config)  # again: another process may have changed it before the lock
        _sweep(config.out.resolve())
        yield functools.partial(_take_over, config, locks)


@contextlib.contextmanager
def _lock(folder: Path) -> Generator[None]:
    with contextlib.ExitStack() as opened:
        try:
            try:
                _flock(opened, folder, os.O_RDONLY)
            except BlockingIOError:
                raise
            except OSError:
                _flock(opened, folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT)
        except BlockingIOError as error:
            raise FolderInUseError(
                f"another process is training in {folder}; wait until it ends, stop it, or use another --out"
            ) from error
        except OSError as error:
            raise named(error, f"{folder} cannot be locked") from error
        yield


def _flock(opened: contextlib.ExitStack, path: Path, flags: int) -> None:
    """Lock `path` until `opened` is closed; raise OSError if it cannot be locked, BlockingIOError if another has it."""
    descriptor = os.open(path, flags, 0o600)
    opened.callback(os.close, descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def require_usable(config: TrainConfig) -> None:
    """Refuse a folder that is not empty, unless it has a run and `config` says what to do with it. Changes nothing.

    Raises:
        RunDirError: it is not empty, or there is nothing to resume.
        ConfigError: the run to resume had a different configuration.
    """
    if (size := len(os.fsencode(config.out.absolute()))) > _MAX_PATH_BYTES:
        raise RunDirError(
            f"the path of --out has {size} bytes, at most {_MAX_PATH_BYTES} are possible; use a shorter one"
        )
    entries = {entry.name for entry in config.out.iterdir()} if config.out.exists() else set[str]()
    entries -= _BEFORE_THE_RUN if config_file.NAME not in entries else {_LOCK_NAME}
    if config.resume and (entries or config.resume != "auto"):
        if config_file.NAME not in entries:
            advice = " and is not empty; use another --out" if entries else "; use another --out, or leave out --resume"
            raise RunDirError(f"{config.out} has no run to resume{advice}")
        earlier = _read_config(config.out)
        if not config_file.is_of_a_run(earlier):
            raise RunDirError(f"{config.out}/{config_file.NAME} is not the configuration of a run; use another --out")
        config_file.require_same_run(earlier, config)
    elif entries and not config.overwrite:
        raise RunDirError(
            f"{config.out} is not empty; --resume continues the run in it, --overwrite deletes it; or use another --out"
        )
    elif entries and not (config_file.NAME in entries and config_file.is_of_a_run(_read_config(config.out))):
        raise RunDirError(f"{config.out} contains something other than a run and is not deleted; use another --out")
    elif foreign := sorted(entries - _ENTRIES):
        found = ", ".join(foreign[:3])
        raise RunDirError(
            f"{config.out} contains {found} next to a run and is not deleted; move these files away first"
        )


def _read_config(folder: Path) -> dict[str, object]:
    try:
        return config_file.read(folder)
    except config_file.ConfigFileError as error:
        raise RunDirError(str(error)) from error


def _take_over(config: TrainConfig, locks: contextlib.ExitStack, origin: Origin) -> None:
    """Delete the earlier run if `config.overwrite`, and write config.json and the changes of a checkout."""
    if config.overwrite and (config.out / config_file.NAME).exists():
        folder = config.out.resolve()  # if it is a symbolic link, the folder that it points to
        doomed = folder.with_name(f"{_doomed_prefix(folder)}{uuid.uuid4().hex[:8]}")
        folder.rename(doomed)  # first, so that a partly deleted run is not mistaken for a run after a kill
        folder.mkdir()
        locks.enter_context(_lock(folder))
        shutil.rmtree(doomed)
    config_file.write(config.out, config, provenance=origin.facts)  # first: without it, the folder has no run
    origin.store_diff(config.out)


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left of runs that were in `folder` and that they were deleting."""
    name = re.compile(re.escape(_doomed_prefix(folder)) + "[0-9a-f]{8}")
    with contextlib.suppress(OSError):  # a folder that cannot be read or changed does not keep a run from training
        for entry in folder.parent.iterdir():
            if name.fullmatch(entry.name):
                shutil.rmtree(entry, ignore_errors=True)


def _doomed_prefix(folder: Path) -> str:
    """Return the beginning of the name that the run in `folder` gets while it is being deleted, next to `folder`."""
    return f".{os.fsdecode(os.fsencode(folder.name)[:200])}.deleting-"  # a name has at most 255 bytes
