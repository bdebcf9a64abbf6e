"""Scripts and make explain themselves, and a script refuses arguments that it does not know before it does anything."""

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from docs import gallery
from scripts import check_names, client_matrix, collect_wheels, generate_stubs

ROOT = Path(__file__).parents[2]
SCRIPTS = (check_names, client_matrix, generate_stubs, collect_wheels, gallery)

Main = Callable[[Sequence[str]], object]


@pytest.fixture(params=SCRIPTS, ids=lambda script: script.__name__)
def main(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Main:
    """The main function of a script whose work fails the test."""

    def work(*_: object) -> None:
        pytest.fail("the script began its work")

    for script, name in (
        (check_names, "_files"),
        (client_matrix, "find_pythons"),
        (generate_stubs, "generate"),
        (collect_wheels, "collect"),
        (gallery, "draw"),
    ):
        monkeypatch.setattr(script, name, work)
    return request.param.main


def test_help_says_what_the_script_does(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    (script,) = (script for script in SCRIPTS if script.main is main)
    assert (script.__doc__ or "").splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--nope"], ["one", "two"]])
def test_unknown_arguments_are_refused(main: Main, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    complaint = capsys.readouterr().err
    assert "unrecognized arguments:" in complaint
    assert complaint.endswith(f" {arguments[-1]}\n")


@pytest.mark.parametrize("script", [client_matrix, generate_stubs])
def test_a_folder_that_does_not_exist_is_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        script.main([str(tmp_path / "absent" / "record.md")])
    assert stopped.value.code == 2
    assert "absent/record.md" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["help"]], ids=["make", "make help"])
def test_make_lists_every_target(arguments: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # not a sub-make
    done = subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    listed = dict(re.findall(r"^make ([a-z-]+) +(\S.*)$", done.stdout, flags=re.MULTILINE))
    assert len(listed) == len(done.stdout.splitlines())
    assert sorted(listed) == sorted(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
