"""kilolayer-policy as a command line: usage errors, exit codes, and a fast help."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.policy_command.conftest import publish
from training.policy_command import show
from training.policy_command.run import main


def test_a_wrong_command_line_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show"]) == 2
    assert capsys.readouterr().err == (
        "error: the following arguments are required: DIR; kilolayer-policy show --help describes the usage\n"
    )
    assert main(["shoe", "somewhere"]) == 2
    assert capsys.readouterr().err.startswith("error: argument COMMAND: invalid choice: 'shoe' (choose from ")


def test_a_folder_without_versions_is_a_wrong_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} has no published version; name a published version such as runs/first/policies/2000, or "
        "the folder of all versions\n"
    )


@pytest.mark.parametrize("words", [["--help"], ["show", "--help"]])
def test_the_help_needs_no_jax(words: list[str]) -> None:
    program = (
        "import sys\n"
        "from training.policy_command.run import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('jax' in sys.modules)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert ended.stdout.startswith("usage: kilolayer-policy ")
    assert ended.stdout.endswith("\nFalse\n")


WITHOUT_EXTRA_TRAIN = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in %r:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from training.policy_command.run import main

for words in %r:
    print('code of', words[0], main(words))
"""
# Without rich, which flax needs, too.
OF_THE_EXTRA = {"brax", "gymnasium", "imageio", "matplotlib", "mujoco", "optax", "tensorboardX", "tyro"}


def test_all_but_evaluate_work_without_the_extra_train(policies: Path) -> None:
    one, two = str(policies / "1000"), str(policies / "2000")
    exported, facts = str(policies.parent / "exported"), str(policies.parent / "facts.toml")
    commands = [
        ["show", one],
        ["verify", one],
        ["diff", one, two],
        ["export", one, "--out", exported],
        ["import", "--template", facts],
        ["evaluate", one],
    ]
    program = WITHOUT_EXTRA_TRAIN % (OF_THE_EXTRA, commands)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    codes = [line.removeprefix("code of ") for line in ended.stdout.splitlines() if line.startswith("code of ")]
    assert codes == ["show 0", "verify 0", "diff 0", "export 0", "import 0", "evaluate 1"]
    assert ended.stderr == ("error: No module named 'mujoco': install with pip install -e '.[train,export]'\n")


def test_a_reader_that_ends_early_is_no_error(policies: Path) -> None:
    script = Path(__file__).parents[3] / "training" / "policy_command" / "run.py"
    command = f"{sys.executable} {script} show {policies} | exec true; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("0\n", "")


def test_more_than_a_mebibyte_arrives_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    publish(tmp_path, 1, provenance={"notes": "x" * 1_500_000})
    assert main(["show", str(tmp_path), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["provenance"] == {"notes": "x" * 1_500_000}


def test_a_full_disk_is_an_error(
    policies: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["show", str(policies), "--json"]) == 1
        assert main(["show", "--help"]) == 1
    line = "error: standard output cannot be written: No space left on device\n"
    assert capsys.readouterr().err == 2 * line


def test_a_process_whose_output_cannot_be_written_ends_with_one_line() -> None:
    """The interpreter does not try again when it ends."""
    script = Path(__file__).parents[3] / "training" / "policy_command" / "run.py"
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, script, "--help"]
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (
        1,
        "error: standard output cannot be written: No space left on device\n",
    )


def test_an_error_leaves_standard_output_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tmp_path), "--json"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ImportError("libcudart.so.12: cannot open\nshared object", name="onnxruntime"),
            "error: the library onnxruntime cannot be imported: libcudart.so.12: cannot open shared object; install it "
            "again, or all with pip install -e '.[train,export]'\n",
        ),
        (FileNotFoundError(2, "No such file or directory", "nope.npz"), "error: nope.npz does not exist\n"),
        (PermissionError(13, "Permission denied", "facts.toml"), "error: facts.toml: Permission denied\n"),
        (OSError("the export is too large"), "error: the export is too large\n"),
    ],
)
def test_an_error_of_a_library_or_of_the_system_is_one_plain_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(show, "run", fail)
    assert main(["show", "somewhere"]) == 1
    assert capsys.readouterr().err == line


def test_control_characters_of_a_path_are_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", f"{tmp_path}/\x1b[2J\nx"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/\\x1b[2J x does not exist" in line
