"""The command line of training: its flags, its help, its list of environments."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training import run
from training.config import TrainConfig
from training.envs import registry
from training.run import _without_saving, ignored_variables, main, parse
from training.run_dir import config_file

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--env and --out are required: for example --env point_u_maze --out runs/point_u_maze; --list-envs"),
        (["--out", "runs/x"], "--env is required: for example --env point_u_maze; --list-envs shows all"),
        (["--env", "", "--out", "runs/x"], "--env is required: for example --env point_u_maze"),
        (["--env", "ant"], "--out is required: for example --out runs/ant"),
        (["--resume"], "--env and --out are required"),
        (["--resume", "--out", "/nothing"], "/nothing has no run to resume; use another --out, or leave out --resume"),
        (
            ["--env", "ant", "--out", "runs/x", "--eval-env", "aunt"],
            "unknown environment 'aunt'; known, nearest first: ant",
        ),
        (
            ["--env", "ant", "--out", "runs/x", "--eval_env=aunt"],
            "unknown environment 'aunt'; known, nearest first: ant",
        ),
        (
            ["--env", "point_umaze", "--out", "runs/x"],
            "unknown environment 'point_umaze'; known, nearest first: point_u",
        ),
        (["--env", "point_u_maze", "--out", "runs/x", "--preset", "pape"], "unknown preset 'pape'"),
        (["--env", "point_u_maze", "--out", "runs/x", "--actor-depth", "10"], "try 8 or 12"),
        (["--env", "ant", "--out"], "error: --out needs a value; --help describes it"),
        (["--sed", "3"], "error: --sed is not a flag; did you mean --seed? --help lists all flags"),
        (["--seed", "x"], "error: --seed must be an integer, such as 0, got 'x'"),
        (["--algorithm", "td3"], "error: --algorithm must be crl, sac or ppo, got 'td3'"),
        (["--dry-run", "now"], "error: --dry-run takes no value, got 'now'"),
        (["--list-envs", "--foo"], "error: --foo is not a flag; did you mean "),
        (
            ["--env", "ant", "--out", "gs://bucket/x"],
            "error: --out must be a path on this machine, got the URL gs://buc",
        ),
        (
            ["--env", "ant", "--out", "runs/x", "--init-from", "s3://bucket/x"],
            "error: init_from must be a path on this machine, got the URL s3://bucket/x; use a folder such as",
        ),
    ],
)
def test_bad_flags_are_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("variable", "flag"), [("KILOLAYER_SEED", "--seed"), ("KILOLAYER_MAX_MINUTE", "--max-minutes")]
)
def test_a_variable_that_nothing_reads_is_one_line_with_the_nearest_flag_and_exit_2(
    variable: str, flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(variable, "3")
    assert main(["--env", "ant", "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {variable} is not a setting: training reads no variables; use a flag, did you mean")
    assert f" {flag}? " in told
    assert told.count("\n") == 1


def test_a_variable_that_resembles_one_of_the_server_names_that_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("KILOLAYER_LISTN", "[::1]:1")
    assert main(["--env", "ant", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        "error: KILOLAYER_LISTN is not a setting: training reads no variables; did you mean the server's "
        "KILOLAYER_LISTEN? If the variable is of another program, unset it here\n"
    )


def test_variables_of_the_server_and_of_kubernetes_are_ignored_with_one_line() -> None:
    environ = {"KILOLAYER_PORT": "tcp://10.0.0.1:1", "KILOLAYER_LISTEN": "[::1]:1", "KILOLAYER_WEB_SERVICE_PORT": "1"}
    assert ignored_variables(environ) == (
        "ignoring KILOLAYER_LISTEN, KILOLAYER_PORT, KILOLAYER_WEB_SERVICE_PORT: variables of the server, or of a "
        "Service of Kubernetes"
    )
    assert ignored_variables({"PATH": "/bin"}) == ""


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = parse(["--env", "ant", "--out=~/runs/x", "--init-from=~/first", "--eval-goals=~/goals"])
    assert (config.out, config.init_from) == (tmp_path / "runs" / "x", tmp_path / "first")
    assert config.eval_goals == tmp_path / "goals"
    config_file.write(tmp_path, parse(["--env", "ant", "--out", str(tmp_path)]))
    assert parse(["--resume", "--out=~"]).out == tmp_path


@pytest.mark.slow  # two starts of JAX
def test_a_gpu_that_is_asked_for_and_missing_is_one_line_and_exit_1(tmp_path: Path) -> None:
    environ = os.environ | {"JAX_PLATFORMS": "cuda", "CUDA_VISIBLE_DEVICES": "", "JAX_ENABLE_X64": "1"}
    for flags in (["--dry-run"], ["--out", str(tmp_path / "run")]):
        command = [sys.executable, str(ROOT / "training" / "run.py"), "--env", "point_u_maze", *flags]
        ran = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=800, check=False)
        assert ran.returncode == 1
        ignoring, missing = ran.stderr.splitlines()
        assert ignoring == "warning: ignoring JAX_ENABLE_X64=1: this program sets it itself"
        assert missing.startswith("error: JAX_PLATFORMS=cuda asks for an NVIDIA GPU, and JAX cannot use one: ")
    assert not (tmp_path / "run").exists()


def test_flags_change_the_preset_and_nothing_else() -> None:
    plain = parse(["--env", "point_u_maze", "--out", "runs/x"])
    changed = parse(["--env", "point_u_maze", "--out", "runs/x", "--actor-depth", "8", "--seed", "3"])
    assert (plain.actor_depth, plain.num_envs, plain.episode_length) == (4, 16, 100)
    assert (changed.actor_depth, changed.seed, changed.num_envs) == (8, 3, 16)
    paper = parse(["--env", "point_u_maze", "--out", "runs/x", "--preset", "paper"])
    assert paper.num_envs == 512


def test_the_command_line_and_a_plain_configuration_are_the_same() -> None:
    for env in ("point_u_maze", "ant"):
        assert parse(["--env", env, "--out", f"runs/{env}"]) == TrainConfig(env=env)


def test_resume_needs_no_other_flag_than_the_folder(tmp_path: Path) -> None:
    started = parse(["--env", "ant", "--preset", "ant_on_two_cores", "--out", str(tmp_path), "--seed", "3"])
    config_file.write(tmp_path, started)
    resume = ["--resume", "--out", str(tmp_path)]
    assert parse(resume) == dataclasses.replace(started, resume=True)
    assert parse([*resume, "--max-minutes", "5"]) == dataclasses.replace(started, resume=True, max_minutes=5)
    assert parse([*resume, "--preset", "ant_on_two_cores"]) == parse(resume)
    assert parse([*resume, "--env", "ant"]) == parse(resume)
    assert parse(["--env", "ant", "--out", str(tmp_path), "--no-resume"]).preset == "paper"


def test_auto_begins_where_there_is_no_run_and_continues_where_there_is_one(tmp_path: Path) -> None:
    command = ["--env", "ant", "--preset", "ant_on_two_cores", "--out", str(tmp_path / "run"), "--seed", "3"]
    started = parse([*command, "--resume", "auto"])
    assert started == dataclasses.replace(parse(command), resume="auto")
    (tmp_path / "run").mkdir()
    config_file.write(tmp_path / "run", started)
    assert parse([*command, "--resume=auto"]) == started
    assert parse(["--resume", "auto", "--out", str(tmp_path / "run")]) == started
    assert parse(["--resume", "--out", str(tmp_path / "run")]) == dataclasses.replace(started, resume=True)
    assert parse([*command, "--no-resume"]).resume is False


def test_auto_needs_an_environment_to_begin_and_refuses_other_settings_as_resume_does(tmp_path: Path, capsys) -> None:
    assert main(["--resume", "auto", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: --env is required")
    config_file.write(tmp_path, parse(["--env", "ant", "--out", str(tmp_path)]))
    assert main(["--resume", "auto", "--out", str(tmp_path), "--seed", "1"]) == 2
    assert capsys.readouterr().err.startswith("error: seed was 0 in the run to resume and is 1 now; use 0, or start")


ADVICE = "; check the disk and the folder, or use another --out"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), f"[Errno 28] No space left on device in runs/first{ADVICE}"),
        (OSError(13, "Permission denied", "/a"), f"[Errno 13] Permission denied: '/a'{ADVICE}"),
        (OSError(5, "runs/first/policies/1: no"), f"[Errno 5] runs/first/policies/1: no{ADVICE}"),
        (OSError(28, "it needs 9 MB in runs/first; free some"), "[Errno 28] it needs 9 MB in runs/first; free some"),
    ],
    ids=["without a file", "with a file", "of ours", "of ours, with advice"],
)
def test_an_error_of_the_disk_names_the_folder_and_gives_advice_once(error: OSError, line: str) -> None:
    config = parse(["--env", "point_u_maze", "--out", "runs/first"])
    assert run.describe_os_error(error, config) == line


def test_a_run_that_ends_without_saving_says_what_starts_it_again(tmp_path: Path) -> None:
    plain = parse(["--env", "ant", "--out", str(tmp_path)])
    auto = dataclasses.replace(plain, resume="auto")
    nothing = "ended; nothing was saved yet. Start again with the same command"
    assert [_without_saving(plain), _without_saving(auto)] == [f"{nothing} with --overwrite", nothing]
    (tmp_path / "snapshots" / ".writing-3-0123abcd").mkdir(parents=True)
    assert _without_saving(auto) == nothing
    (tmp_path / "snapshots" / "3").mkdir()
    saved = "ended without saving; continue from the last snapshot with"
    assert [_without_saving(plain), _without_saving(auto)] == [
        f"{saved} --resume --out {tmp_path}",
        f"{saved} the same command",
    ]


def test_a_command_to_continue_with_is_quoted_for_a_shell() -> None:
    assert TrainConfig(env="ant", out=Path("runs/lr[1e-3]")).continuation == "--resume --out 'runs/lr[1e-3]'"
    assert TrainConfig(env="ant", out=Path("runs/first")).continuation == "--resume --out runs/first"


@pytest.mark.parametrize("flags", [["--resume", "maybe"], ["--resume=maybe"], ["auto"]])
def test_another_value_of_resume_is_refused(tmp_path: Path, flags: list[str]) -> None:
    assert main(["--env", "ant", "--out", str(tmp_path / "run"), *flags]) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--preset", "paper"],
            "num_envs was 256 in the run to resume and is 512 with --preset paper; leave out --preset",
        ),
        (
            ["--env", "ant", "--preset", "paper"],
            "num_envs was 256 in the run to resume and is 512 with --preset paper; ",
        ),
        (
            ["--env", "humanoid"],
            "env was 'ant' in the run to resume and is 'humanoid' now; use 'ant', or start a new run",
        ),
        (["--actor-depth", "8"], "actor_depth was 4 in the run to resume and is 8 now; use 4, or start a new run with"),
    ],
)
def test_a_resume_with_another_setting_names_it_and_what_may_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    config_file.write(tmp_path, parse(["--env", "ant", "--preset", "ant_on_two_cores", "--out", str(tmp_path)]))
    assert main(["--resume", "--out", str(tmp_path), *flags]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}")
    assert told.endswith(
        "with another --out. Only these flags may change with --resume: --preset, --total-env-steps, --max-minutes, "
        "--target-stay-rate, --max-diverged-share, --actor-learning-rate, --critic-learning-rate, "
        "--temperature-learning-rate, --allow-bf16-on-cpu, --num-evals, --eval-episodes, --eval-goals, "
        "--max-eval-share, --keep-policies, --snapshot-minutes\n"
    )
    assert told.count("\n") == 1


def test_a_preset_that_differs_only_in_what_may_change_resumes_a_run(tmp_path: Path) -> None:
    config_file.write(tmp_path, parse(["--env", "ant_hardest_maze", "--preset", "paper", "--out", str(tmp_path)]))
    resumed = parse(["--resume", "--out", str(tmp_path), "--preset", "training_layouts"])
    assert (resumed.env, resumed.total_env_steps) == ("ant_hardest_maze", 100_000_000)


def test_a_bad_flag_fails_before_training_is_imported() -> None:
    code = "import sys; from training.run import main; main(['--env', 'x']); print('training.trainer' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=800, check=True)
    assert ran.stdout == "False\n"
    assert "--out is required" in ran.stderr


def test_the_command_ends_without_waiting_for_the_interpreter() -> None:
    """JAX's threads take seconds to end on a busy machine; nothing is left to write by then."""
    code = (
        "import atexit; from training import run; atexit.register(print, 'late'); run.main = lambda: print('end') or 3"
    )
    ran = subprocess.run([sys.executable, "-c", f"{code}; run.command()"], capture_output=True, text=True, timeout=800)  # noqa: PLW1510
    assert (ran.returncode, ran.stdout, ran.stderr) == (3, "end\n", "")


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (SystemExit(2), 2, ""),
        (SystemExit(), 0, ""),
        (RuntimeError("a fault"), 1, "RuntimeError: a fault\n"),
    ],
)
def test_an_error_ends_the_command_as_it_would_end_the_interpreter(
    error: BaseException, code: int, told: str, monkeypatch, capsys
) -> None:
    def fail() -> int:
        raise error

    codes: list[int] = []
    monkeypatch.setattr(run, "main", fail)
    monkeypatch.setattr(os, "_exit", codes.append)
    run.command()
    assert codes == [code]
    assert capsys.readouterr().err.rpartition("    raise error\n")[2] == told


def test_the_environments_are_listed_with_their_sizes(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["--list-envs"]) == 0
    rows = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    figures = [cell.strip() for cell in rows["ant_big_maze"].split("│")[2:-1]]
    assert figures == ["29", "2", "8", "0.05 s", "0.5 m", "1000"]
    assert set(rows) == set(registry.names())


def test_help_reads_like_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for expected in (
        "point_hardest_maze",
        "--resample-goal-probability",
        "Probability, at each training step",
        "--impl {jax,warp}",
    ):
        assert expected in text
    flags = " ".join(text.split("--algorithm")[0].replace("│", " ").split())
    assert "which the module registers. (required)" in flags
    assert "TensorBoard events. (required)" in flags
