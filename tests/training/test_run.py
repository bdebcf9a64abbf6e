"""The command line of training: its flags, its help, its list of environments."""

import pytest

from training.envs import registry
from training.run import main, parse


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "runs/x"], "--env is required, for example --env point_u_maze"),
        (["--env", "", "--out", "runs/x"], "--env is required, for example --env point_u_maze"),
        (
            ["--env", "ant", "--out", "runs/x", "--eval-env", "aunt"],
            "unknown environment 'aunt'; known, nearest first: ant",
        ),
        (
            ["--env", "ant", "--out", "runs/x", "--eval_env=aunt"],
            "unknown environment 'aunt'; known, nearest first: ant",
        ),
        (["--env", "point_u_maze"], "--out is required"),
        (
            ["--env", "point_umaze", "--out", "runs/x"],
            "unknown environment 'point_umaze'; known, nearest first: point_u",
        ),
        (["--env", "point_u_maze", "--out", "runs/x", "--preset", "pape"], "unknown preset 'pape'"),
        (["--env", "point_u_maze", "--out", "runs/x", "--actor-depth", "10"], "try 8 or 12"),
    ],
)
def test_bad_flags_are_one_line_and_exit_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_flags_change_the_preset_and_nothing_else() -> None:
    plain = parse(["--env", "point_u_maze", "--out", "runs/x"])
    changed = parse(["--env", "point_u_maze", "--out", "runs/x", "--actor-depth", "8", "--seed", "3"])
    assert (plain.actor_depth, plain.num_envs, plain.episode_length) == (4, 16, 100)
    assert (changed.actor_depth, changed.seed, changed.num_envs) == (8, 3, 16)
    paper = parse(["--env", "point_u_maze", "--out", "runs/x", "--preset", "paper"])
    assert paper.num_envs == 512


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
