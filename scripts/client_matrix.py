"""Test the Python client with its oldest and its newest dependencies, on every Python that it supports.

It looks for each Python on PATH and among pyenv's versions, and leaves out those that it does not find. It needs a
package index. It takes about 5 minutes.
"""

import argparse
import dataclasses
import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

REPOSITORY = Path(__file__).parents[1]
CLIENT = REPOSITORY / "clients/python"
RECORD = REPOSITORY / "benchmarks/results/client_matrix.md"
TEST_TOOLS = ("hypothesis", "pytest", "pytest-asyncio", "pytest-timeout", "trustme")

Resolution = Literal["lowest", "newest"]


class MatrixError(Exception):
    """A command failed; the message ends with what it printed."""


class NoIndexError(MatrixError):
    """The package index cannot be reached."""


@dataclasses.dataclass(frozen=True)
class Environment:
    """A virtual environment that holds the client and its dependencies."""

    python: Path
    versions: dict[str, str]  # of Python and of the dependencies, by name


def supported_pythons() -> list[str]:
    """Return the Python versions that the client declares, oldest first, such as `["3.9", "3.10"]`."""
    prefix = "Programming Language :: Python :: "
    return [each.removeprefix(prefix) for each in _project()["classifiers"] if each.startswith(prefix)]


def find_pythons() -> dict[str, Path]:
    """Return the interpreters of `supported_pythons` that this machine has, by version, oldest first."""
    found: dict[str, Path] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for version in supported_pythons():
        on_path = shutil.which(f"python{version}") or sys.executable
        for candidate in (sys.executable, on_path, *pyenv.glob(f"versions/{version}.*/bin/python{version}")):
            # A shim of pyenv is on PATH even if its Python is not selected; it fails then.
            program = "import sys; print('%d.%d' % sys.version_info[:2])"
            done = subprocess.run([candidate, "-c", program], capture_output=True, text=True, check=False)
            if done.stdout.strip() == version:
                found[version] = Path(candidate)
                break
    return found


def build_wheel(folder: Path) -> Path:
    """Build the client's wheel into `folder` and return its path."""
    _run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=CLIENT)
    (wheel,) = folder.glob("kilolayer-*.whl")
    return wheel


def install(base: Path, wheel: Path, folder: Path, *, resolution: Resolution, tools: Sequence[str] = ()) -> Environment:
    """Install the client from `wheel` into a new virtual environment of the interpreter `base` in `folder`.

    Args:
        resolution: "lowest" takes the oldest dependencies that the client allows and that have a wheel for this Python.
        tools: more packages to install, always the newest.

    Raises:
        NoIndexError: the package index cannot be reached.
        MatrixError: something cannot be installed.
    """
    _run([str(base), "-m", "venv", str(folder)])
    python = folder / "bin/python"
    floors = dict(requirement.split(">=") for requirement in _project()["dependencies"])
    versions = {name: _versions(python, name, floor) for name, floor in floors.items()}
    pick = min if resolution == "lowest" else max
    wanted = [f"{name}=={pick(versions[name], key=_key)}" for name in floors]
    pip = (str(python), "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:")
    _run([*pip, str(wheel), *wanted, *tools])
    program = (
        "import platform; from importlib.metadata import version\n"
        f"print(platform.python_version(), *map(version, {list(floors)}))"
    )
    installed = _run([str(python), "-c", program]).split()
    return Environment(python, dict(zip(("python", *floors), installed, strict=True)))


def run_client_tests(environment: Environment) -> str:
    """Run the client's tests in `environment`, and return pytest's last line, such as "180 passed in 20.00s"."""
    command = [
        *(str(environment.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--confcutdir=tests/clients"),
        "--ignore-glob=tests/clients/test_sim*.py",  # need MuJoCo
        "--ignore-glob=tests/clients/test_local*.py",  # compare with JAX and with a server
        "--ignore=tests/clients/test_package.py",  # reads the checkout
        "--hypothesis-profile=ci",  # inputs may come slowly on a busy machine
        "--override-ini=filterwarnings=default",  # those of old dependencies on new Pythons are none of ours
        "tests/clients",
    ]
    return _run(command, cwd=REPOSITORY).strip().splitlines()[-1]


def _project() -> dict[str, Any]:
    return tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]


def _versions(python: Path, name: str, floor: str) -> list[str]:
    """Return the versions of the package `name`, at least `floor`, that have a wheel for `python`."""
    # pip names the versions that it could have installed in the error about one that does not exist. `pip index` would
    # also name versions without a wheel.
    command = [str(python), "-m", "pip", "install", "--dry-run", "--no-deps", "--only-binary=:all:", f"{name}==0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    listing = re.search(r"from versions: (\d[^)]*)\)", done.stderr)
    if listing is None:
        raise NoIndexError(f"pip finds no version of {name}:\n{done.stderr[-2000:]}")
    versions = [each for each in listing[1].split(", ") if re.fullmatch(r"[\d.]+(\.post\d+)?", each)]
    return [each for each in versions if _key(each) >= _key(floor)]


def _key(version: str) -> tuple[int, ...]:
    """Return what a version is ordered by; 1.22.0.post2 counts as 1.22.0."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _run(command: Sequence[str], *, cwd: Path | None = None) -> str:
    """Return what `command` prints. It sees no modules of the checkout, only what is installed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MatrixError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def main(arguments: Sequence[str]) -> None:
    """Test every combination, print its result, and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    default = RECORD.relative_to(REPOSITORY)
    parser.add_argument(
        "record", nargs="?", type=Path, default=RECORD, help=f"the Markdown file to write (default: {default})"
    )
    record: Path = parser.parse_args(arguments).record
    if not record.parent.is_dir():
        parser.error(f"the folder of {record} does not exist; create it, or name a file in a folder that exists")
    pythons = find_pythons()
    missing = [version for version in supported_pythons() if version not in pythons]
    if not pythons:
        raise MatrixError("no supported Python found; put python3.9 to python3.13 on PATH")
    lines = [
        "# The Python client on old and new Pythons",
        "",
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {platform.system()} on {platform.machine()}, by"
        " `make client-matrix`: the wheel of the client and its tests, with the",
        "oldest dependencies that it allows and that have a wheel for that Python, and with the newest.",
        f"Not found and so not tested: {', '.join(missing) or 'none'}.",
        "There is no record beside this page.",
        "",
        "| Python | dependencies | grpcio | numpy | protobuf | result | seconds in all |",
        "|---|---|---|---|---|---|---|",
    ]
    print(lines[-2], lines[-1], sep="\n")
    with tempfile.TemporaryDirectory(prefix="kilolayer-matrix-") as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        for version, base in pythons.items():
            for resolution in ("lowest", "newest"):
                begin_s = time.monotonic()
                environment = install(
                    base, wheel, folder / f"{version}-{resolution}", resolution=resolution, tools=TEST_TOOLS
                )
                outcome = run_client_tests(environment).partition(" in ")[0]
                python, *others = environment.versions.values()
                cells = (python, resolution, *others, outcome, f"{time.monotonic() - begin_s:.0f}")
                lines.append(f"| {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    record.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MatrixError as error:
        sys.exit(f"error: {error}")
