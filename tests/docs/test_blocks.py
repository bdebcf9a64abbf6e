"""What the documentation shows is run; what cannot be run has at least flags that the program knows."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tyro

from clients.sim.run import DriveConfig
from scripts.curves import parse as parse_curves
from serving.admin import UsageError as AdminUsageError
from serving.admin import parse as parse_admin
from serving.command_line import parse as parse_serving
from serving.config import ConfigError as ServeConfigError
from tests.docs import random_policy
from tests.docs.blocks import PAGES, ROOT, Block, blocks, every_block
from training.config import ConfigError as TrainConfigError
from training.envs.core.errors import UnknownNameError
from training.policy_command.result import UsageError as PolicyUsageError
from training.policy_command.run import parse as parse_policy_command
from training.run import parse as parse_training

SHOWN_HTTP_ADDRESS = re.compile(r"127\.0\.0\.1:8000")
SHOWN_ADDRESS = re.compile(r"(127\.0\.0\.1|localhost):50051")
SHOWN_LIMIT = re.compile(r"(timeout(?:_s)?=)0\.5\b")  # of a call; this machine may be busy
LANGUAGES = {"python", "sh", "text", "toml"}  # tests/serving/test_config_file.py reads the only file in TOML
# Programs of others. Their arguments are not checked, but files of ours among them must exist.
FOREIGN = {
    "apt-get",
    "cp",
    "curl",
    "docker",
    "export",
    "grpc_health_probe",
    "mkdir",
    "openssl",
    "perf_analyzer",
    "pip",
    "python3",
    "python3.12",
    "sbatch",
    "sha256sum",
    "source",
    "tensorboard",
    "umask",
    "uv",
}
INSTALLED = {
    "kilolayer-admin": "serving/admin.py",
    "kilolayer-policy": "training/policy_command/run.py",
    "kilolayer-serve": "serving/run.py",
    "kilolayer-train": "training/run.py",
}
PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "scripts/curves.py": parse_curves,
    "serving/admin.py": parse_admin,
    "training/policy_command/run.py": parse_policy_command,
}
OURS_TO_READ = re.compile(r"(requirements|tests|clients/python)(/.*)?")

PYTHON = every_block("python")
SHELL = every_block("sh")


def named(found: list[Block]) -> Any:
    marks = {"slow": [pytest.mark.slow]}
    cases = [pytest.param(block, id=block.where, marks=marks.get(block.mark, [])) for block in found]
    return pytest.mark.parametrize("block", cases)


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, with this interpreter as `python`; tests of other machines may be slow."""
    paths = [Path(sys.executable).parent.as_posix(), os.environ["PATH"]]
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"PATH": os.pathsep.join(paths), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'clients/python'}"},
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )


class Addresses(NamedTuple):
    grpc: str
    http: str


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A server of a random policy for point_u_maze, as a process, on free ports."""
    root = tmp_path_factory.mktemp("policies")
    random_policy.publish(root)
    command = [
        sys.executable,
        "serving/run.py",
        "--policies",
        str(root),
        "--listen",
        "127.0.0.1:0",
        "--metrics-port",
        "0",
        "--no-metrics",
        "--max-queue-age-s",
        "60",  # the machine may be busy
        "--http-port",
        "0",
    ]
    with subprocess.Popen([*command, "--max-batch-rows", "1"], cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        pattern = r"ready: grpc=(\S+) http=http://(\S+)"
        ready = next((found for line in server.stderr if (found := re.search(pattern, line))), None)
        assert ready is not None, "the server ended before it was ready"
        yield Addresses(*ready.groups())
        server.terminate()
        server.communicate(timeout=120)
    assert server.returncode == 0


def test_every_block_is_fenced_and_in_a_known_language() -> None:
    for page in PAGES:
        assert {block.language for block in blocks(page)} <= LANGUAGES, page
        outside = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        outside = re.sub(r"^::: .*\n(    .*\n)*", "", outside, flags=re.MULTILINE)  # mkdocstrings and its options
        indented = [line for line in outside.splitlines() if line.startswith("    ")]
        assert not indented, f"{page}: a block without a fence is not run"


@named([block for block in PYTHON if block.mark not in {"file", "no-run"}])
def test_python_is_run(block: Block, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    text = SHOWN_LIMIT.sub(r"\g<1>60", block.text)
    if SHOWN_ADDRESS.search(text) or SHOWN_HTTP_ADDRESS.search(text):
        addresses: Addresses = request.getfixturevalue("addresses")
        text = SHOWN_HTTP_ADDRESS.sub(addresses.http, SHOWN_ADDRESS.sub(addresses.grpc, text))
    done = run(sys.executable, "-c", text, cwd=tmp_path)
    assert done.returncode == 0, f"{block.where}\n{done.stderr}"
    if block.output:
        shown, printed = ([line.rstrip() for line in text.strip().splitlines()] for text in (block.output, done.stdout))
        assert printed == shown, f"{block.where}\n{done.stdout}"
    assert "hold a safe action" not in done.stdout, done.stdout  # the examples catch the errors of a real loop


@named([block for block in PYTHON if block.mark == "file"])
def test_a_file_that_is_shown_is_the_one_that_tests_use(block: Block) -> None:
    assert block.text == (ROOT / block.about).read_text()


@named([block for block in SHELL if block.mark != "no-run"])
def test_shell_is_run(block: Block) -> None:
    done = run("bash", "-euo", "pipefail", "-c", block.text, cwd=ROOT)
    assert done.returncode == 0, f"{block.where}\n{done.stderr}"


@named([block for block in SHELL if "curl" in block.text and SHOWN_HTTP_ADDRESS.search(block.text)])
def test_curl_gets_actions_over_http(block: Block, addresses: Addresses) -> None:
    done = run("bash", "-euo", "pipefail", "-c", SHOWN_HTTP_ADDRESS.sub(addresses.http, block.text), cwd=ROOT)
    assert done.returncode == 0, f"{block.where}\n{done.stderr}"
    (action,) = json.loads(done.stdout)["outputs"]
    assert (action["name"], action["shape"], len(action["data"])) == ("action", [1, 2], 2)


@pytest.mark.parametrize("block", SHELL, ids=[block.where for block in SHELL])
def test_flags_are_those_of_the_program(block: Block) -> None:
    for words in block.commands():
        check(words)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("python training/run.py --env point_u_maze --out x --unrol 3", TrainConfigError),
        ("python training/run.py --env point_maze --out x", UnknownNameError),
        (".venv/bin/python serving/run.py --policies x --lisen 1", ServeConfigError),
        ("kilolayer-admin switch point_u_maze --prot 1", AdminUsageError),
        ("kilolayer-policy import params.npz --fact facts.toml", PolicyUsageError),
        ("python $KILOLAYER/clients/sim/run.py --env point_u_maze --robot 3", SystemExit),
        ("python benchmarks/depth.py --dephts 4", SystemExit),
        ("python benchmarks/dept.py", AssertionError),
        ("python docs/gallery.py --all", AssertionError),
        ("make demos", AssertionError),
        ("pip install -r requirements/gpu.txt", AssertionError),
        ("trains --env x", AssertionError),
    ],
)
def test_a_wrong_flag_is_noticed(command: str, error: type[BaseException]) -> None:
    (words,) = Block("", 0, "sh", command, "", "").commands()
    with pytest.raises(error):
        check(words)


def check(words: list[str]) -> None:
    """Let the program that a command calls parse the command's arguments. It is not run."""
    program, *arguments = words
    if program in INSTALLED:
        parser_of(INSTALLED[program])(arguments)
    elif program.endswith("python") and arguments[0] != "-m":
        script, *arguments = arguments
        parser_of(script.removeprefix("$KILOLAYER/"))(arguments)
    elif program == "make":
        assert set(arguments) <= targets(), f"make has no target {' '.join(arguments)}"
    else:
        assert program.rpartition("/")[2] in FOREIGN | {"python"}, f"{program} is not known here"
        for argument in arguments:
            if OURS_TO_READ.fullmatch(argument):
                assert (ROOT / argument).exists(), f"{argument} does not exist"


def parser_of(script: str) -> Callable[[list[str]], Any]:
    """What parses the arguments of one of our scripts."""
    assert (ROOT / script).is_file(), f"{script} does not exist"
    match script.split("/"):
        case ["training", "run.py"]:
            return lambda arguments: "--list-envs" in arguments or parse_training(own_robot(arguments))
        case ["serving", "run.py"]:
            return lambda arguments: parse_serving(arguments, {})
        case ["clients", "sim", "run.py"]:
            return lambda arguments: tyro.cli(DriveConfig, args=arguments)
        case ["benchmarks", name]:
            with pytest.MonkeyPatch.context() as patch:
                patch.syspath_prepend(ROOT / "benchmarks")
                options = importlib.import_module(name.removesuffix(".py")).Options
            return lambda arguments: tyro.cli(options, args=arguments)
        case _:
            return PARSERS.get(script, no_arguments)


def own_robot(arguments: list[str]) -> list[str]:
    """The pages' own robot is no module here; its flags are those of any environment."""
    return ["point_u_maze" if argument == "my_robot:two_link" else argument for argument in arguments]


def no_arguments(arguments: list[str]) -> None:
    assert not arguments, f"no test knows how to parse {arguments}"


def targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
