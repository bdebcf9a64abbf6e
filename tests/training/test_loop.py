"""Whole runs, seconds long: what they leave behind, how they end, and how they go on."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import rich.console

from policy import bundle
from training import loop, snapshot
from training.config import ConfigError
from training.report import read_metrics
from training.run import main, parse


@pytest.fixture(scope="module")
def console() -> rich.console.Console:
    return rich.console.Console(quiet=True)


@pytest.fixture(scope="module")
def finished(tiny, console, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    loop.train(tiny(out), console=console)
    return out


def test_a_run_leaves_metrics_curves_events_and_policies(finished: Path) -> None:
    rows = read_metrics(finished)
    assert [row["env_steps"] for row in rows] == [120, 240]  # two epochs of three iterations of 8 x 5 steps
    for name in ("loss/critic", "loss/actor", "eval/success_any", "eval/time_at_goal", "temperature", "entropy"):
        assert all(np.isfinite(row[name]) for row in rows), name
    assert rows[0]["loss/critic"] != rows[1]["loss/critic"]
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished / "tensorboard").glob("events.*"))
    assert bundle.versions(finished / "policies") == [120, 240]
    assert json.loads((finished / "config.json").read_text())["env"] == "point_u_maze"


def test_a_published_policy_is_the_trained_one_and_says_where_it_comes_from(finished: Path, tiny) -> None:
    policy = bundle.read(finished / "policies" / "240")
    config = tiny(finished)
    env = loop.registry.make(config.env)
    state = snapshot.restore_latest(finished / "snapshots", like=loop.initial_state(config, env))
    for stored, trained in zip(jax.tree.leaves(policy.params), jax.tree.leaves(state.learner.params), strict=True):
        np.testing.assert_array_equal(stored, trained)
    assert policy.spec == config.spec(env)
    assert policy.provenance["config"]["unroll"] == 5
    assert policy.provenance["metrics"]["env_steps"] == 240
    assert policy.provenance["versions"]["mujoco"] == policy.provenance["versions"]["mujoco-mjx"]


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished: Path, tiny, console, tmp_path) -> None:
    loop.train(tiny(tmp_path / "same"), console=console)
    loop.train(tiny(tmp_path / "other", seed=1), console=console)
    losses = [[row["loss/critic"] for row in read_metrics(run)] for run in (finished, tmp_path / "same")]
    assert losses[0] == losses[1]
    assert read_metrics(tmp_path / "other")[0]["loss/critic"] != losses[0][0]


def test_a_resumed_run_ends_as_one_that_was_never_stopped(finished: Path, tiny, console, tmp_path) -> None:
    out = tmp_path / "stopped"
    # time is up at once, which ends the run after its first round of gradient steps, in the middle of an epoch
    loop.train(tiny(out, epochs=1, max_minutes=1e-9), console=console)
    assert bundle.versions(out / "policies") == [120]
    loop.train(tiny(out, epochs=1, resume=True), console=console)
    assert [row["env_steps"] for row in read_metrics(out)] == [120, 240]
    straight, resumed = (bundle.read(run / "policies" / "240") for run in (finished, out))
    for one, other in zip(jax.tree.leaves(straight.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_resuming_a_finished_run_does_nothing(finished: Path, tiny, console) -> None:
    before = (finished / "metrics.jsonl").read_text()
    outcome = loop.train(tiny(finished, resume=True), console=console)
    assert outcome.policy == finished / "policies" / "240"
    assert (finished / "metrics.jsonl").read_text() == before


def test_training_stops_at_the_share_asked_for(tiny, console, tmp_path) -> None:
    loop.train(tiny(tmp_path / "run", stop_at_share=1e-9, eval_episodes=128, episode_length=400), console=console)
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["eval/success_any"] > 0 or len(rows) == 2
    assert all(row["eval/success_any"] == 0 for row in rows[:-1])


def test_a_folder_in_use_is_refused_unless_told_what_to_do(finished: Path, tiny, console, tmp_path) -> None:
    kept = (finished / "metrics.jsonl").read_text()
    with pytest.raises(loop.OutputFolderError, match="--resume continues .*--overwrite deletes"):
        loop.train(tiny(finished), console=console)
    with pytest.raises(ConfigError, match="batch_size was 16 in the run to resume and is 32 now"):
        loop.train(tiny(finished, resume=True, batch_size=32), console=console)
    with pytest.raises(loop.OutputFolderError, match="no run to resume"):
        loop.train(tiny(tmp_path / "nothing", resume=True), console=console)
    assert (finished / "metrics.jsonl").read_text() == kept
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    with pytest.raises(loop.OutputFolderError, match="which is not deleted"):
        loop.train(tiny(tmp_path / "thesis", overwrite=True), console=console)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"


def test_overwrite_starts_anew(tiny, console, tmp_path) -> None:
    out = tmp_path / "run"
    loop.train(tiny(out, total_env_steps=120, epochs=1), console=console)
    (out / "policies" / "leftover").mkdir()
    loop.train(tiny(out, overwrite=True, total_env_steps=120, epochs=1), console=console)
    assert not (out / "policies" / "leftover").exists()
    assert len(read_metrics(out)) == 1


def test_a_loss_that_is_not_finite_stops_the_run_by_name(tiny, console, tmp_path) -> None:
    config = tiny(tmp_path / "run", critic_learning_rate=1e30, updates_per_unroll=30)
    with pytest.raises(FloatingPointError, match="is not finite after iteration"):
        loop.train(config, console=console)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "runs/x"], "--env is needed; known: point_u_maze"),
        (["--env", "point_u_maze"], "--out is needed"),
        (
            ["--env", "point_umaze", "--out", "runs/x"],
            "unknown environment 'point_umaze'; known, nearest first: point_u",
        ),
        (["--env", "point_u_maze", "--out", "runs/x", "--preset", "pape"], "unknown preset 'pape'"),
        (["--env", "point_u_maze", "--out", "runs/x", "--actor-depth", "10"], "valid nearby: 8 or 12"),
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
    assert (plain.actor_depth, plain.num_envs, plain.episode_length) == (4, 256, 200)
    assert (changed.actor_depth, changed.seed, changed.num_envs) == (8, 3, 256)
    paper = parse(["--env", "point_u_maze", "--out", "runs/x", "--preset", "paper"])
    assert paper.num_envs == 512


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--env", "point_u_maze", "--out", str(tmp_path / "file" / "run")]) == 1
    told = capsys.readouterr().err
    assert "Not a directory" in told
    assert told.count("\n") == 1


def test_help_reads_like_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for expected in ("point_hardest_maze", "--goal-redraw-probability", "Chance per step", "--physics {jax,warp}"):
        assert expected in text
