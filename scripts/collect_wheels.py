"""Collect the wheels that an installation without a network needs, for the client, the server and training.

The versions and hashes are those of requirements/cpu.txt, without the packages of tests and documentation. Our own
packages are built from this checkout. The build backends are there too, so that a checkout can be installed. The wheels
fit the Python version and the kind of machine that collects them.

With --check, it then installs each part from the folder into a new virtual environment, without a package index, runs
it, and records the result in benchmarks/results/wheelhouse.md.
"""

import argparse
import dataclasses
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
LOCK = REPOSITORY / "requirements/cpu.txt"
PROJECTS = (REPOSITORY / "clients/python", REPOSITORY)
FOLDER = Path("wheelhouse")
RECORD = REPOSITORY / "benchmarks/results/wheelhouse.md"

_EDITABLE = "editables"  # that hatchling needs in addition for `pip install -e`
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class WheelhouseError(Exception):
    """The wheels cannot be collected, or not be installed. The message says why."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Something that a user installs."""

    requirement: str  # for pip
    project: Path
    extras: tuple[str, ...]  # of the project
    trial: tuple[str, ...]  # a command of the environment that shows that it works


PARTS = {
    "client": Part(
        "kilolayer", PROJECTS[0], (), ("python", "-c", "import kilolayer; kilolayer.PolicyClient('unix:a')")
    ),
    "server": Part("kilolayer-stack[serve]", PROJECTS[1], ("serve",), ("kilolayer-serve", "--help")),
    "server with buckets and tracing": Part(
        "kilolayer-stack[serve,http,remote,tracing]",
        PROJECTS[1],
        ("serve", "http", "remote", "tracing"),
        ("python", "-c", "import obstore, serving.api.http.transport, serving.api.tracing, serving.policies.bucket"),
    ),
    "training": Part("kilolayer-stack[train]", PROJECTS[1], ("train",), ("kilolayer-train", "--list-envs")),
}


def main(arguments: Sequence[str]) -> None:
    """Collect the wheels, and try them if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, default=FOLDER, help=f"the folder to write; its wheels are replaced ({FOLDER})"
    )
    parser.add_argument("--check", action="store_true", help="install and run each part, without a package index")
    options = parser.parse_args(arguments)
    folder: Path = options.folder.absolute()
    collect(folder)
    wheels = sorted(folder.glob("*.whl"))
    found = f"{len(wheels)} wheels, {sum(wheel.stat().st_size for wheel in wheels) / 2**20:.0f} MiB"
    print(f"{found}, in {options.folder}", flush=True)
    if options.check:
        record(found, check(folder))


def collect(folder: Path) -> None:
    """Fill `folder` with the wheels of all parts, in place of those that are there.

    Raises:
        WheelhouseError: `folder` holds other files, a package has no wheel, or the package index cannot be reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if others := [path.name for path in folder.iterdir() if path.suffix != ".whl"]:
        raise WheelhouseError(f"{folder} holds other files, such as {others[0]}; name an empty folder")
    for wheel in folder.glob("*.whl"):
        wheel.unlink()
    with tempfile.TemporaryDirectory(prefix="kilolayer-wheelhouse-") as name:
        locked = Path(name) / "locked.txt"
        locked.write_text(locked_packages(LOCK.read_text(), required()))
        _pip("download", "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", locked, "-d", folder)
    build_ours(folder)


def build_ours(folder: Path) -> None:
    """Build the wheels of our own packages into `folder`, with the build backend of the lock."""
    _pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, *PROJECTS)


def check(folder: Path) -> dict[str, float]:
    """Install each part from `folder` into a new environment, without a package index, and run it.

    Returns:
        The seconds of each installation, by part.

    Raises:
        WheelhouseError: an installation or a trial failed.
    """
    taken_s: dict[str, float] = {}
    for name, part in PARTS.items():
        with tempfile.TemporaryDirectory(prefix="kilolayer-part-") as environment:
            python = new_environment(Path(environment))
            begin_s = time.monotonic()
            install_offline(python, folder, part.requirement)
            taken_s[name] = time.monotonic() - begin_s
            program, *rest = part.trial
            _run([str(python.parent / program), *rest], cwd=Path(environment))
            if name == "client":  # a checkout is built by the wheels of the build backends
                install_offline(python, folder, "--force-reinstall", "--no-deps", "-e", PROJECTS[0])
                _run([str(python), "-c", "import kilolayer"], cwd=Path(environment))
        print(f"{name}: installed in {taken_s[name]:.0f} s; {' '.join(part.trial[:2])} works", flush=True)
    return taken_s


def record(found: str, taken_s: Mapping[str, float]) -> None:
    """Write the record of a check."""
    lines = [
        "# Installation without a network",
        "",
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {platform.system()} on {platform.machine()}, Python"
        f" {platform.python_version()}, by `scripts/collect_wheels.py --check`: {found}.",
        "Each part was installed with `pip install --no-index` into a new virtual environment and run there.",
        "The client was also installed from its checkout, which needs the build backends.",
        "There is no record beside this page.",
        "",
        "| part | requirement | run | seconds of installation |",
        "|---|---|---|---|",
    ]
    for name, part in PARTS.items():
        cells = (name, f"`{part.requirement}`", f"`{part.trial[0]}`", f"{taken_s[name]:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    RECORD.write_text("\n".join(lines) + "\n")


def new_environment(folder: Path) -> Path:
    """Make a virtual environment in `folder`, and return its Python."""
    _run([sys.executable, "-m", "venv", str(folder)])
    return folder / "bin/python"


def install_offline(python: Path, folder: Path, *arguments: str | Path) -> None:
    """Let pip install `arguments` from the wheels in `folder` into the environment of `python`."""
    command = [python, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", folder, *arguments]
    _run(list(map(str, command)))


def required() -> list[str]:
    """Return the packages of others that the parts and their build backends need directly."""
    needs: list[str] = [_EDITABLE]
    for folder in PROJECTS:
        project = tomllib.loads((folder / "pyproject.toml").read_text())
        needs += project["build-system"]["requires"] + project["project"]["dependencies"]
        extras = {extra for part in PARTS.values() if part.project == folder for extra in part.extras}
        needs += [need for extra in sorted(extras) for need in project["project"]["optional-dependencies"][extra]]
    names = {_normalized(found[0]) for need in needs if (found := _NAME.match(need))}
    return sorted(names - {"kilolayer"})


def locked_packages(lock: str, names: Iterable[str]) -> str:
    """Return the entries of `lock` for `names` and for everything that these need, with their hashes.

    A comment of the lock names the packages that need an entry.

    Raises:
        WheelhouseError: the lock has no entry for one of the names.
    """
    entries: list[tuple[str, str]] = []  # name and text; a package can have one entry for each version of Python
    needed_by: dict[str, set[str]] = {}
    for text in re.split(r"\n(?=[A-Za-z0-9])", "\n" + lock)[1:]:
        found = _NAME.match(text)
        assert found is not None
        name, _, comments = _normalized(found[0]), *text.partition("# via")[1:]
        entries.append((name, text.partition("    # via")[0]))
        needed_by.setdefault(name, set()).update(map(_normalized, _NAME.findall(comments)))
    wanted = set(names)
    if missing := wanted - needed_by.keys():
        raise WheelhouseError(f"the lock has no {min(missing)}; write it anew, as CONTRIBUTING.md says")
    while more := {name for name, parents in needed_by.items() if parents & wanted} - wanted:
        wanted |= more
    return "".join(text.rstrip() + "\n" for name, text in entries if name in wanted)


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _pip(command: str, *arguments: str | Path) -> None:
    _run([sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *map(str, arguments)])


def _run(command: Sequence[str], *, cwd: Path | None = None) -> None:
    """Run `command`. It sees no modules of the checkout, only what is installed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WheelhouseError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except WheelhouseError as error:
        sys.exit(f"error: {error}")
