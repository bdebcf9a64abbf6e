"""Where a run and its policies come from: code, libraries, device, command, and the files of the user's own robot.

It is part of config.json and of every published policy. A resumed run keeps the provenance of the processes before it
that differed in more than their date and command.
"""

import datetime
import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import mujoco

from policy import whole_file
from training.budgets import run_cost
from training.config import TrainConfig
from training.envs.core.goal_env import GoalEnv
from training.run_dir import checkout, config_file

Provenance = dict[str, Any]  # JSON values

DIFFS = "diffs"  # folder in the run's folder
_ROOT = Path(__file__).resolve().parents[2]
_LIBRARIES = (
    *("kilolayer-stack", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "mujoco", "mujoco-mjx", "brax"),
    *("numpy", "warp-lang"),
)
_COMPARED = ("versions", "device", "matmul_precision", "commit", "diff", "robot_files")
_MOST_EARLIER = 20


class Origin(NamedTuple):
    """The provenance of this process."""

    facts: Provenance
    diff: bytes  # what was changed since the commit, see `Checkout`
    lines: list[str]  # for the user: the code, and what differs from the process that is resumed

    def store_diff(self, folder: Path) -> None:
        """Store the changes since the commit, if there are any, in the run's `folder`."""
        if self.diff:
            path = folder / self.facts["diff"]
            path.parent.mkdir(exist_ok=True)
            whole_file.write(path, self.diff)


def collect(config: TrainConfig, env: GoalEnv) -> Origin:
    """Return the provenance of this process, with that of the processes that it resumes.

    Raises:
        ConfigFileError: the file of the run to resume cannot be read.
    """
    found = checkout.find(_ROOT)
    now: Provenance = {
        "date": date(),
        "command": shlex.join(sys.argv),
        "device": run_cost.device(),
        "versions": library_versions(),
        "matmul_precision": matmul_precision(),
        "commit": found.commit if found else None,
        "dirty": bool(found.diff) if found else None,
        "diff": f"{DIFFS}/{found.diff_name}" if found and found.diff else None,
        "robot_files": robot_files(config.env, env),
    }
    resumed = config.resume and (config.out / config_file.NAME).exists()  # with auto there may be no run
    before = config_file.provenance(config.out) if resumed else now
    facts = now | {"earlier": _earlier(before, now)}
    return Origin(facts, found.diff if found else b"", list(filter(None, (describe(now), changes(before, now)))))


def date() -> str:
    """Return the time now, in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def library_versions() -> dict[str, str]:
    """Return the versions of the software that a result depends on, without what is not installed."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # optional, or code that is not installed but on PYTHONPATH
            continue
    return versions


def matmul_precision() -> str | None:
    """Return JAX_DEFAULT_MATMUL_PRECISION, of float32 matrix products; None if the device chooses it."""
    return jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]


def robot_files(name: str, env: GoalEnv) -> dict[str, str]:
    """Return the SHA-256 of the files of a robot of the user's own, by name: its MJCF, all that this uses, its module.

    Names are relative to the folder of the MJCF file, or of the module without one.

    Args:
        name: of the environment; MODULE:NAME for one of the user's own.
    """
    files = sorted({path for path in _files(name, env) if path.is_file()})
    model = Path(env.spec.source)
    folder = (model if env.spec.source and model.is_file() else files[0] if files else Path()).resolve().parent
    return {os.path.relpath(path, folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _files(name: str, env: GoalEnv) -> Iterator[Path]:
    """Yield the files of a robot, resolved; some may not exist."""
    source = env.spec.source
    if source and Path(source).is_file():
        yield from (Path(file).resolve() for file in (source, *_dependencies(source)))
    module = sys.modules.get(name.rpartition(":")[0])
    if module is not None and module.__file__:
        yield Path(module.__file__).resolve()


def _dependencies(file: str) -> list[str]:
    """Return the files that an MJCF file uses; none if it has changed since it was loaded and is not valid now."""
    try:
        return mujoco.mju_getXMLDependencies(file)  # pyright: ignore[reportAttributeAccessIssue]
    except (ValueError, mujoco.FatalError):  # pyright: ignore[reportAttributeAccessIssue]
        return []


def describe(provenance: Mapping[str, Any]) -> str:
    """Return one line about the code and the libraries."""
    versions, commit = provenance["versions"], provenance["commit"]
    changes = f" with changes that are not committed ({provenance['diff']})" if provenance["dirty"] else ""
    code = f", commit {commit[:12]}{changes}" if commit else ""
    shown = ", ".join(f"{name} {versions[name]}" for name in ("jax", "mujoco", "python") if name in versions)
    return f"code: kilolayer-stack {versions.get('kilolayer-stack', 'not installed')}{code}; {shown}"


def changes(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return one line about what differs from the process that is resumed; empty if nothing does."""
    if not earlier:
        return "this run was begun by a release that did not record its versions and its device; its end may differ"
    before, after = (_flat(provenance) for provenance in (earlier, now))
    different = [
        f"{name} was {before.get(name, 'absent')} and is {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    if not different:
        return ""
    return f"resumed under other conditions, so its end may differ in the last digits or more: {'; '.join(different)}"


def _flat(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return what is compared, by its name in a message."""
    flat: dict[str, str] = {}
    for name in _COMPARED:
        value = provenance.get(name)
        if isinstance(value, dict):
            flat |= {key: f"{each:.12}" for key, each in value.items()}
        elif value is not None:
            flat[name] = f"{value[:12] if name == 'commit' else value}"
    return flat


def _earlier(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Provenance]:
    """Return the provenance of earlier processes that differ, oldest first."""
    kept: list[Provenance] = list(before.get("earlier", []))
    if before and _flat(before) != _flat(now):
        kept.append({name: value for name, value in before.items() if name != "earlier"})
    return kept[-_MOST_EARLIER:]
