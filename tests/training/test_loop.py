"""Whole runs, seconds long: what they leave behind, how they end, and how they go on."""

import dataclasses
import io
import json
import resource
import shutil
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from policy import bundle
from tests.training import probes
from training import loop, run_folder, snapshot
from training.config import ConfigError
from training.envs import registry
from training.report import MetricsError, read_metrics
from training.run import main, parse

TINY_FLAGS = frozenset(
    {
        "num_envs",
        "unroll",
        "episode_length",
        "total_env_steps",
        "epochs",
        "updates_per_unroll",
        "batch_size",
        "replay_capacity",
        "replay_min",
        "actor_width",
        "critic_width",
        "representation_dim",
        "eval_episodes",
        "goal_redraw_probability",
        "discount",
        "preset",
        "actor_learning_rate",
        "critic_learning_rate",
        "temperature_learning_rate",
    }
)


@pytest.fixture(scope="module", autouse=True)
def without_physics() -> Generator[None]:
    """What is tested here is the shell: a task by formula compiles in a second, MJX in ten."""
    line = probes.Line()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "make", lambda *_, **__: line)
        yield


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
    env = registry.make(config.env)
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


def test_without_its_replay_a_snapshot_is_smaller_and_a_resumed_run_fills_it_anew(
    finished: Path, tiny, console, tmp_path
) -> None:
    out = tmp_path / "small"
    small = {"snapshot_replay": "off", "total_env_steps": 400, "epochs": 1}
    told = rich.console.Console(file=io.StringIO(), width=10_000)
    loop.train(tiny(out, **small, max_minutes=1e-9), console=told)  # ends after its first gradient steps
    assert "does not end with the same parameters as one that was never stopped" in told.file.getvalue()
    fresh = loop.initial_state(tiny(out), registry.make("point_u_maze"))
    with pytest.raises(snapshot.SnapshotError, match="replay"):
        snapshot.restore_latest(out / "snapshots", like=fresh)
    loop.train(tiny(out, **small, resume=True), console=console)
    assert [row["env_steps"] for row in read_metrics(out)] == [120, 400]
    state = snapshot.restore_latest(out / "snapshots", like=fresh._replace(replay=None))
    assert int(state.iteration) == 10
    # of the seven iterations after the resumption, two only filled the replay
    assert int(jax.tree.leaves(state.learner.optimiser)[0]) == 3 * (1 + 5)


def test_resuming_a_finished_run_does_nothing(finished: Path, tiny, console) -> None:
    before = (finished / "metrics.jsonl").read_text()
    outcome = loop.train(tiny(finished, resume=True), console=console)
    assert outcome.policy == finished / "policies" / "240"
    assert (finished / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(("stop_at_share", "evaluations"), [(0.5, 1), (0.51, 2)])
def test_training_stops_at_the_share_asked_for(tiny, tmp_path, monkeypatch, stop_at_share, evaluations) -> None:
    figures = {"eval/success_any": 0.5, "eval/time_at_goal": 1.0, "eval/final_distance": 1.0}
    monkeypatch.setattr(loop.evaluate, "summarise", lambda _: figures)
    console = rich.console.Console(quiet=True)
    loop.train(tiny(tmp_path / "run", stop_at_share=stop_at_share), console=console)
    assert len(read_metrics(tmp_path / "run")) == evaluations


def test_a_folder_in_use_is_refused_unless_told_what_to_do(finished: Path, tiny, console, tmp_path) -> None:
    kept = (finished / "metrics.jsonl").read_text()
    with pytest.raises(run_folder.OutputFolderError, match="--resume continues .*--overwrite deletes"):
        loop.train(tiny(finished), console=console)
    with pytest.raises(ConfigError, match="batch_size was 16 in the run to resume and is 32 now"):
        loop.train(tiny(finished, resume=True, batch_size=32), console=console)
    with pytest.raises(run_folder.OutputFolderError, match="no run to resume"):
        loop.train(tiny(tmp_path / "nothing", resume=True), console=console)
    assert (finished / "metrics.jsonl").read_text() == kept
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    with pytest.raises(run_folder.OutputFolderError, match="which is not deleted"):
        loop.train(tiny(tmp_path / "thesis", overwrite=True), console=console)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"


def test_what_is_not_a_run_is_not_deleted_whatever_it_looks_like(finished: Path, tiny, console, tmp_path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(run_folder.OutputFolderError, match="something other than a run, which is not deleted"):
        loop.train(tiny(model, overwrite=True), console=console)
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "thesis.txt").write_text("precious")
    with pytest.raises(run_folder.OutputFolderError, match="holds thesis.txt besides a run"):
        loop.train(tiny(run, overwrite=True), console=console)
    assert (run / "thesis.txt").read_text() == "precious"
    assert bundle.versions(run / "policies") == [120, 240]


def test_a_link_is_overwritten_where_it_points_to(finished: Path, tiny, console, tmp_path) -> None:
    shutil.copytree(finished, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    loop.train(tiny(tmp_path / "link", overwrite=True, total_env_steps=120, epochs=1), console=console)
    assert (tmp_path / "link").is_symlink()
    assert bundle.versions(tmp_path / "real" / "policies") == [120]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}])
def test_a_folder_that_another_process_trains_in_is_refused(
    finished: Path, tiny, console, how: dict[str, bool]
) -> None:
    config = tiny(finished, **how)
    with (
        run_folder.claimed(tiny(finished, resume=True)),
        pytest.raises(run_folder.OutputFolderError, match="another process is training in"),
    ):
        loop.train(config, console=console)
    assert bundle.versions(finished / "policies") == [120, 240]


def test_a_run_without_the_snapshots_of_its_policies_is_not_begun_anew(finished: Path, tiny, console, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "snapshots")
    with pytest.raises(snapshot.SnapshotError, match="no snapshot under"):
        loop.train(tiny(run, resume=True), console=console)
    assert len(read_metrics(run)) == 2


def test_without_the_replay_a_policy_newer_than_the_snapshot_is_not_taken_for_the_runs_own(
    tiny, console, tmp_path
) -> None:
    small = {"snapshot_replay": "off"}
    loop.train(tiny(tmp_path / "run", **small), console=console)
    shutil.rmtree(tmp_path / "run" / "snapshots" / "6")
    with pytest.raises(snapshot.SnapshotError, match="has published step 240 and its last snapshot is of step 120"):
        loop.train(tiny(tmp_path / "run", **small, resume=True), console=console)


def test_a_policy_published_after_other_epochs_is_evaluated_first(tiny, console, tmp_path, monkeypatch) -> None:
    """Stopped in the middle of an epoch, after three of six iterations, and resumed with three epochs of two."""
    out = tmp_path / "run"
    loop.train(tiny(out, epochs=1, max_minutes=1e-9), console=console)
    shutil.rmtree(out / "policies")
    (out / "metrics.jsonl").write_text("")
    monkeypatch.setattr(snapshot, "any_saved", lambda _: True)
    loop.train(tiny(out, epochs=2, resume=True), console=console)
    rows = read_metrics(out)
    assert [row["env_steps"] for row in rows] == [120, 240]
    published = bundle.read(out / "policies" / "120").provenance["metrics"]
    assert published["eval/final_distance"] == rows[0]["eval/final_distance"]


@pytest.mark.parametrize("line", ["{}", "[1, 2]", '{"env_steps": null}', "\udcff", "["])
def test_a_record_that_is_damaged_is_named(finished: Path, tiny, console, tmp_path, line: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "metrics.jsonl").write_bytes(line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(MetricsError, match="metrics.jsonl"):
        loop.train(tiny(run, resume=True), console=console)


def test_a_run_that_is_damaged_is_refused_by_name_and_left_alone(finished: Path, tmp_path, capsys, monkeypatch) -> None:
    # Orbax leaves reads behind that complain, for a while after the error it raised, of its event loop being closed.
    heard = [time.monotonic()]
    monkeypatch.setattr(sys, "unraisablehook", lambda _: heard.append(time.monotonic()))
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    settings = json.loads((run / "config.json").read_text()) | {"out": str(run)}
    flags = [
        word
        for name, value in settings.items()
        if name in TINY_FLAGS
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    resume = ["--env", "point_u_maze", "--out", str(run), "--resume", *flags]

    def refused(message: str) -> None:
        assert main(resume) == 1
        told = capsys.readouterr().err
        assert message in told
        assert "Traceback" not in told

    for path in (run / "snapshots" / "6").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:20])
    refused("snapshots/6 cannot be read")
    (run / "config.json").write_text("garbage")
    refused("config.json cannot be read")
    assert bundle.versions(run / "policies") == [120, 240]
    while time.monotonic() - heard[-1] < 1:
        time.sleep(0.05)


def test_a_bad_name_costs_nothing(finished: Path, capsys) -> None:
    arguments = ["--env", "point_u_maze", "--out", str(finished), "--overwrite", "--name", "a/b c"]
    assert main(arguments) == 2
    assert "name must be 1 to 64 letters" in capsys.readouterr().err
    assert bundle.versions(finished / "policies") == [120, 240]


def test_overwrite_starts_anew(tiny, console, tmp_path) -> None:
    out = tmp_path / "run"
    loop.train(tiny(out, total_env_steps=120, epochs=1), console=console)
    (out / "policies" / "leftover").mkdir()
    loop.train(tiny(out, overwrite=True, total_env_steps=120, epochs=1), console=console)
    assert not (out / "policies" / "leftover").exists()
    assert len(read_metrics(out)) == 1


def test_a_loss_that_is_not_finite_stops_the_run_by_name(tiny, console, tmp_path) -> None:
    config = tiny(tmp_path / "run", critic_learning_rate=1e30, updates_per_unroll=30)
    with pytest.raises(FloatingPointError, match="is not finite in gradient step [2-9] of 30 of iteration 3;"):
        loop.train(config, console=console)


def test_a_policy_that_is_not_finite_is_neither_saved_nor_published(tiny, console, tmp_path) -> None:
    """The loss of the only gradient step comes before the step that ruins the actor."""
    config = tiny(tmp_path / "run", actor_learning_rate=1e30, updates_per_unroll=1, epochs=6)
    message = "eval/final_distance is not finite after iteration 3, because the policy's actions are not"
    with pytest.raises(FloatingPointError, match=message):
        loop.train(config, console=console)
    assert bundle.versions(tmp_path / "run" / "policies") == [40, 80]
    assert sorted(path.name for path in (tmp_path / "run" / "snapshots").iterdir()) == ["1", "2"]


def test_parameters_that_are_not_finite_are_named(tiny, tmp_path) -> None:
    state = loop.initial_state(tiny(tmp_path), registry.make("point_u_maze"))
    loop._require_finite_parameters(state)
    params = state.learner.params
    output = params.goal_encoder.output._replace(bias=params.goal_encoder.output.bias.at[3].set(jnp.nan))
    broken = params._replace(goal_encoder=dataclasses.replace(params.goal_encoder, output=output))
    with pytest.raises(FloatingPointError, match="goal_encoder.output.bias is not finite after iteration 0"):
        loop._require_finite_parameters(state._replace(learner=state.learner._replace(params=broken)))


def test_bf16_is_refused_on_a_cpu_unless_asked_for(tiny, console, tmp_path) -> None:
    with pytest.raises(ConfigError, match="slower than f32 on a CPU.*--bf16-on-cpu"):
        loop.train(tiny(tmp_path / "run", precision="bf16"), console=console)
    assert not (tmp_path / "run").exists()
    outcome = loop.train(tiny(tmp_path / "run", precision="bf16", bf16_on_cpu=True), console=console)
    assert outcome.policy == tmp_path / "run" / "policies" / "240"


def test_a_disk_without_room_for_a_snapshot_is_refused_with_both_sizes(finished, tmp_path, monkeypatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))(10, 9, 1_000_000)
    monkeypatch.setattr(snapshot.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="takes 2 MB and the disk of .* has 1 MB left; .*--snapshot-replay off"):
        snapshot.save(tmp_path / "snapshots", 1, state={"array": np.zeros(500_000, np.float32)})
    assert not any((tmp_path / "snapshots").iterdir())


def test_memory_that_runs_out_is_one_line_and_the_snapshot_before_it_stays(tmp_path, monkeypatch, capsys) -> None:
    """The logits of 4,096 rows take 300 MB, of which the process is left 100."""
    out = tmp_path / "run"
    flags = (
        "--env=point_u_maze --preset=paper --num-envs=8 --unroll=5 --episode-length=20 --updates-per-unroll=1 "
        "--batch-size=4096 --replay-capacity=23 --replay-min=10 --actor-width=16 --critic-width=16 --eval-episodes=4 "
        f"--representation-dim=8 --epochs=1 --total-env-steps=240 --out={out}"
    ).split()
    assert main([*flags, "--max-minutes=1e-9"]) == 0  # ends after its first gradient step
    saved = [path.name for path in (out / "snapshots").iterdir()]
    capsys.readouterr()
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    compile_programs = loop.compile_programs

    def compile_and_limit(*arguments: Any) -> loop.Programs:
        programs = compile_programs(*arguments)
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 100_000_000, unlimited[1]))
        return programs

    monkeypatch.setattr(loop, "compile_programs", compile_and_limit)
    try:
        assert main([*flags, "--resume"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
    told = capsys.readouterr().err
    assert "the device is out of memory; replay 0.00 GB" in told
    assert "lower batch_size from 4096 to 2896" in told  # where the logits take half as much
    assert "Traceback" not in told
    assert [path.name for path in (out / "snapshots").iterdir()] == saved == ["3"]
    monkeypatch.undo()
    assert main([*flags, "--resume"]) == 0
    assert bundle.versions(out / "policies") == [120, 240]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "runs/x"], "--env is needed, for example --env point_u_maze"),
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
    assert (plain.actor_depth, plain.num_envs, plain.episode_length) == (4, 256, 100)
    assert (changed.actor_depth, changed.seed, changed.num_envs) == (8, 3, 256)
    paper = parse(["--env", "point_u_maze", "--out", "runs/x", "--preset", "paper"])
    assert paper.num_envs == 512


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--env", "point_u_maze", "--out", str(tmp_path / "file" / "run")]) == 1
    told = capsys.readouterr().err
    assert "Not a directory" in told
    assert told.count("\n") == 1


def test_the_environments_are_listed_with_their_sizes(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["--list-envs"]) == 0
    rows = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    figures = [cell.strip() for cell in rows["ant_big_maze"].split("│")[2:-1]]
    assert figures == ["29", "2", "8", "0.05 s", "0.5 m", "1000"]
    assert set(rows) == set(registry.ENVIRONMENTS)


def test_help_reads_like_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for expected in ("point_hardest_maze", "--goal-redraw-probability", "Chance per step", "--physics {jax,warp}"):
        assert expected in text


def test_another_environment_can_judge_if_it_is_for_the_same_robot(tiny, console, tmp_path, monkeypatch) -> None:
    class Finished(probes.Line):
        """Starts at its goal, and an episode is as short as the other's."""

        def begin(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.zeros(2), jnp.zeros(2)

        def move(self, state: jax.Array, push: jax.Array) -> jax.Array:
            return state

    class Renamed(probes.Line):
        def __init__(self) -> None:
            super().__init__()
            self.facts = dataclasses.replace(self.facts, action_names=("thrust",))

    envs = {"ant": probes.Line(), "ant_u_maze": Finished(), "point_u_maze": Renamed()}
    monkeypatch.setattr(registry, "make", lambda name, **_: envs[name])
    loop.train(tiny(tmp_path / "run", env="ant", eval_env="ant_u_maze"), console=console)
    assert [row["eval/time_at_goal"] for row in read_metrics(tmp_path / "run")] == [20, 20]
    with pytest.raises(ConfigError, match="eval_env point_u_maze has other action names than ant, 1 of them to 1"):
        loop.train(tiny(tmp_path / "other", env="ant", eval_env="point_u_maze"), console=console)
    assert not (tmp_path / "other").exists()
