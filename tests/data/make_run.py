"""Store a tiny run of this release, which later releases must resume; see docs/upgrading.md.

    PYTHONPATH=. python tests/data/make_run.py

It writes run_format_<n>.tar.gz beside this file: config.json, the metrics, a policy and a snapshot of a run on a task
without physics. Run it once for each format of config.json, with the release that introduces it, and never again after
that release.
"""

import contextlib
import shlex
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.training import probes
from tests.training.conftest import tiny_config
from training import trainer
from training.envs import registry
from training.run_dir import config_file

HERE = Path(__file__).resolve().parent
STORED = ("config.json", "metrics.jsonl", "policies", "snapshots")
COMMAND = "kilolayer-train --env point_u_maze --out run"


def main() -> None:
    """Train for 120 steps in a temporary folder, and store the run."""
    line = probes.Line()
    registry.make = lambda *_, **__: line
    sys.argv = shlex.split(COMMAND)  # stored with the run
    file = HERE / f"run_format_{config_file.FORMAT}.tar.gz"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, contextlib.chdir(folder):
        trainer.train(tiny_config(Path("run"), total_env_steps=120, num_evals=1))
        with tarfile.open(file, "w:gz") as archive:
            for name in STORED:
                archive.add(Path("run") / name, filter=_without_owner)
    print(f"{file}: {file.stat().st_size / 1000:.0f} KB")


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main()
