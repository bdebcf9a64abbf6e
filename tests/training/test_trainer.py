"""Whole runs, seconds long: what they leave behind, how they end, and how they go on."""

import dataclasses
import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from policy import bundle
from tests.training import probes
from training import divergence, trainer
from training.config import ConfigError
from training.envs import registry
from training.programs import initial_state
from training.progress_display import ConsoleProgress, NoProgress, Status
from training.run import main
from training.run_dir import checkpoint
from training.run_dir.metrics_log import read_metrics

ROOT = Path(__file__).parents[2]
STATISTICS = ("normalization_mean", "normalization_std", "seen_mean", "seen_std", "seen_low", "seen_high")
pytestmark = pytest.mark.usefixtures("without_physics")


def test_a_run_leaves_metrics_curves_events_and_policies(finished: Path) -> None:
    rows = read_metrics(finished)
    assert [row["env_steps"] for row in rows] == [120, 240]  # two epochs of three iterations of 8 x 5 steps
    for name in (
        "loss/critic",
        "loss/actor",
        "eval/stay",
        "eval/touched",
        "eval/time_at_goal",
        "temperature",
        "entropy",
    ):
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
    state = checkpoint.restore_latest(finished / "snapshots", like=initial_state(config, env))
    for stored, trained in zip(jax.tree.leaves(policy.params), jax.tree.leaves(state.train_state.params), strict=True):
        np.testing.assert_array_equal(stored, trained)
    plain = dataclasses.replace(policy.spec, **dict.fromkeys(STATISTICS, ()))
    assert plain == config.policy_spec(env)
    assert policy.provenance["config"]["unroll_length"] == 5
    assert policy.provenance["metrics"]["env_steps"] == 240
    assert policy.provenance["versions"]["mujoco"] == policy.provenance["versions"]["mujoco-mjx"]


def test_a_policy_carries_the_statistics_of_the_states_it_has_seen(tiny, tmp_path) -> None:
    """Those of all 30 steps of the 8 environments, and to normalize with, those of the first 10, before it learned."""
    config = tiny(tmp_path / "run", max_replay_size=40, normalize_observations=True)
    trainer.train(config)
    spec, params = (getattr(bundle.read(config.out / "policies" / "240"), part) for part in ("spec", "params"))
    state = checkpoint.restore_latest(
        config.out / "snapshots", like=initial_state(config, registry.make("point_u_maze"))
    )
    assert int(state.replay.held) == 30
    rows = np.asarray(state.replay.steps.state[:30]).reshape(240, -1).astype(np.float64)
    np.testing.assert_allclose(spec.seen_mean, rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(spec.seen_std, rows.std(axis=0), atol=1e-6)
    np.testing.assert_array_equal(spec.seen_low, rows.min(axis=0))
    np.testing.assert_array_equal(spec.seen_high, rows.max(axis=0))
    first = rows[:80]
    varies = first.std(axis=0) > 0
    assert varies.tolist() == [True, False]  # a point on a line
    np.testing.assert_allclose(spec.normalization_mean, first.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(spec.normalization_std, np.where(varies, first.std(axis=0), 1), atol=1e-6)
    for applied in (params.normalization, state.train_state.params.normalization):
        np.testing.assert_array_equal(applied.mean, np.float32(spec.normalization_mean))
        np.testing.assert_array_equal(applied.std, np.float32(spec.normalization_std))
    before_learning = tiny(tmp_path / "short", normalize_observations=True, num_evals=6, total_env_steps=1)
    trainer.train(before_learning)
    first_policy = bundle.read(before_learning.out / "policies" / "40").spec
    assert first_policy.normalization_mean == (0, 0)
    assert first_policy.normalization_std == (1, 1)
    assert len(first_policy.seen_mean) == 2


def test_the_same_seed_gives_the_same_run_and_another_seed_another(finished: Path, tiny, tmp_path) -> None:
    trainer.train(tiny(tmp_path / "same"))
    trainer.train(tiny(tmp_path / "other", seed=1))
    losses = [[row["loss/critic"] for row in read_metrics(run)] for run in (finished, tmp_path / "same")]
    assert losses[0] == losses[1]
    assert read_metrics(tmp_path / "other")[0]["loss/critic"] != losses[0][0]


def test_a_resumed_run_ends_as_one_that_was_never_stopped(finished: Path, tiny, tmp_path) -> None:
    out = tmp_path / "stopped"
    trainer.train(tiny(out, num_evals=1, total_env_steps=120))  # ends after its first round of gradient steps
    assert bundle.versions(out / "policies") == [120]
    trainer.train(tiny(out, num_evals=1, resume=True))
    assert [row["env_steps"] for row in read_metrics(out)] == [120, 240]
    straight, resumed = (bundle.read(run / "policies" / "240") for run in (finished, out))
    for one, other in zip(jax.tree.leaves(straight.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_is_resumed_with_another_learning_rate(finished: Path, tiny, tmp_path) -> None:
    """The way out of a loss that is not finite: the actor stays as it is with a rate of next to nothing."""
    out = tmp_path / "run"
    trainer.train(tiny(out, num_evals=1, total_env_steps=120))
    trainer.train(tiny(out, num_evals=1, resume=True, actor_learning_rate=1e-30))
    before, after = (bundle.read(out / "policies" / version).params for version in ("120", "240"))
    for one, other in zip(jax.tree.leaves(before.actor), jax.tree.leaves(after.actor), strict=True):
        np.testing.assert_array_equal(one, other)
    straight = bundle.read(finished / "policies" / "240").params
    assert after.goal_encoder is not None
    assert before.goal_encoder is not None
    for one, other in ((after.actor, straight.actor), (after.goal_encoder, before.goal_encoder)):
        changed = jax.tree.map(lambda new, old: not np.array_equal(new, old), one, other)
        assert any(jax.tree.leaves(changed))


def test_without_its_replay_a_snapshot_is_smaller_and_a_resumed_run_refills_it(finished: Path, tiny, tmp_path) -> None:
    out = tmp_path / "small"
    small = {"snapshot_replay": False, "total_env_steps": 400, "num_evals": 1, "name": "small"}
    told = rich.console.Console(file=io.StringIO(), width=10_000)
    # ends after its first gradient steps
    trainer.train(tiny(out, **small | {"total_env_steps": 120}), progress=ConsoleProgress(told))
    assert "does not end with the same parameters as a run without interruption" in told.file.getvalue()
    assert "take the name of the environment" not in told.file.getvalue()  # the run has a name of its own
    assert bundle.read(out / "policies" / "120").spec.name == "small"
    fresh = initial_state(tiny(out), registry.make("point_u_maze"))
    with pytest.raises(checkpoint.SnapshotError, match="replay"):
        checkpoint.restore_latest(out / "snapshots", like=fresh)
    trainer.train(tiny(out, **small, resume=True))
    assert [row["env_steps"] for row in read_metrics(out)] == [120, 400]
    state = checkpoint.restore_latest(out / "snapshots", like=fresh._replace(replay=None))
    assert int(state.iteration) == 10
    # of the seven iterations after the resumption, two only filled the replay
    assert int(jax.tree.leaves(state.train_state.optimizer)[0]) == 3 * (1 + 5)


def test_progress_receives_every_evaluation_and_iteration(tiny, tmp_path) -> None:
    class Recorder(NoProgress):
        def __init__(self) -> None:
            self.evaluations, self.iterations, self.lines = [], [], []

        def say(self, text: str) -> None:
            self.lines.append(text)

        def evaluated(self, metrics) -> None:
            self.evaluations.append(dict(metrics))

        def advance(self, status: Status) -> None:
            if (status.what, status.done, status.of) not in self.iterations[-1:]:  # again for each slice of a round
                self.iterations.append((status.what, status.done, status.of))

    recorder = Recorder()
    outcome = trainer.train(tiny(tmp_path / "run"), progress=recorder)
    assert recorder.evaluations == read_metrics(tmp_path / "run")
    assert recorder.evaluations[-1] == outcome.metrics
    assert recorder.iterations == [
        ("preparing", 0, 6),
        ("compiling", 0, 6),
        *(("training", done, 6) for done in range(1, 4)),
        ("evaluating", 3, 6),
        *(("training", done, 6) for done in range(4, 7)),
        ("evaluating", 6, 6),
    ]
    expected = (
        "policies of this run take the name of the environment, point_u_maze; choose another with --name, for example "
        "if one server offers policies of several runs"
    )
    assert expected in recorder.lines


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((registry, "make"), (trainer, "compile_programs"), (trainer, "initial_state")):
        monkeypatch.setattr(module, name, pytest.fail)


def test_a_finished_run_is_resumed_without_building_anything(finished: Path, tiny, nothing_is_built) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    told = rich.console.Console(file=io.StringIO(), width=10_000)
    outcome = trainer.train(tiny(finished, resume=True), progress=ConsoleProgress(told))
    assert outcome.policy == finished / "policies" / "240"
    assert outcome.metrics == read_metrics(finished)[-1]
    first, last = told.file.getvalue().splitlines()
    assert first == f"{finished} is finished: it has taken its 240 environment steps; raise --total-env-steps to go on"
    assert last.startswith(f"policy in {finished}/policies/240: the newest")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_finished_run_refuses_changes_as_any_other(finished: Path, tiny, nothing_is_built) -> None:
    with pytest.raises(ConfigError, match="actor_width was 16 in the run to resume"):
        trainer.train(tiny(finished, resume=True, actor_width=32))


def evaluations_that_find(monkeypatch: pytest.MonkeyPatch, stays: list[float]) -> None:
    """Let the evaluations of a run, which cost next to nothing on the probe, find these figures, one after another."""
    found = iter(stays)
    monkeypatch.setattr(trainer.references, "measure_once", lambda *_, **__: 0.0)
    monkeypatch.setattr(
        trainer.evaluation, "summarize", lambda _: {"eval/stay": next(found), "eval/final_distance": 1.0}
    )


@pytest.mark.parametrize(("target_stay_rate", "evaluations"), [(0.5, 4), (0.51, 6), (math.inf, 6)])
def test_training_stops_after_two_evaluations_at_its_target(
    tiny, tmp_path, monkeypatch, target_stay_rate, evaluations
) -> None:
    evaluations_that_find(monkeypatch, [0.7, 0.4, 0.5, 0.5, 0.4, 0.4])
    trainer.train(tiny(tmp_path / "run", target_stay_rate=target_stay_rate, num_evals=6))
    assert len(read_metrics(tmp_path / "run")) == evaluations


def test_a_resumed_run_counts_the_evaluation_before_it(tiny, tmp_path, monkeypatch) -> None:
    """The third evaluation is at the target, and the run ends; resumed, one more is enough."""
    out = tmp_path / "run"
    evaluations_that_find(monkeypatch, [0.1, 0.1, 0.6])
    trainer.train(tiny(out, target_stay_rate=0.5, num_evals=6, total_env_steps=120))
    evaluations_that_find(monkeypatch, [0.5])
    told = rich.console.Console(file=io.StringIO(), width=10_000)
    trainer.train(tiny(out, target_stay_rate=0.5, num_evals=6, resume=True), progress=SilentConsole(told))
    assert [row["eval/stay"] for row in read_metrics(out)] == [0.1, 0.1, 0.6, 0.5]
    line = "ending early: two evaluations in a row have an eval/stay of target_stay_rate 0.5 or more"
    assert line in told.file.getvalue()
    # and once its target is met, it goes no further, and says so before it compiles
    monkeypatch.setattr(registry, "make", pytest.fail)
    trainer.train(tiny(out, target_stay_rate=0.5, num_evals=6, resume=True), progress=SilentConsole(told))
    assert told.file.getvalue().splitlines()[-2] == (
        f"{out} is finished: two evaluations in a row have an eval/stay of target_stay_rate 0.5 or more; raise "
        "--target-stay-rate to go on, or set it to inf"
    )
    assert len(read_metrics(out)) == 4


class SilentConsole(ConsoleProgress):
    """Says everything but the evaluations, of which these tests make up a part."""

    def evaluated(self, metrics) -> None: ...


def test_the_last_line_names_the_newest_policy_and_the_best(tiny, tmp_path, monkeypatch) -> None:
    out = tmp_path / "run"
    told = rich.console.Console(file=io.StringIO(), width=10_000)
    evaluations_that_find(monkeypatch, [0.25, 0.5, 0.75, 0.75, 0.625])
    trainer.train(tiny(out, num_evals=6, total_env_steps=200), progress=SilentConsole(told))
    assert told.file.getvalue().splitlines()[-1] == (
        f"policy in {out}/policies/200: the newest (eval/stay 0.62); the best is {out}/policies/160 (eval/stay 0.75)"
    )


@pytest.mark.slow
def test_a_policy_published_after_other_epochs_is_evaluated_first(tiny, tmp_path, monkeypatch) -> None:
    """Stopped in the middle of an epoch, after three of six iterations, and resumed with three epochs of two."""
    out = tmp_path / "run"
    trainer.train(tiny(out, num_evals=1, total_env_steps=120))
    shutil.rmtree(out / "policies")
    (out / "metrics.jsonl").write_text("")
    monkeypatch.setattr(checkpoint, "any_saved", lambda _: True)
    trainer.train(tiny(out, num_evals=2, resume=True))
    rows = read_metrics(out)
    assert [row["env_steps"] for row in rows] == [120, 240]
    published = bundle.read(out / "policies" / "120").provenance["metrics"]
    assert published["eval/final_distance"] == rows[0]["eval/final_distance"]


def test_a_loss_that_is_not_finite_stops_the_run_by_name(tiny, tmp_path) -> None:
    config = tiny(tmp_path / "run", critic_learning_rate=1e30, updates_per_unroll=30)
    with pytest.raises(FloatingPointError, match="is NaN or infinity in gradient step [2-9] of 30 of iteration 3;"):
        trainer.train(config)


def test_a_policy_that_is_not_finite_is_neither_saved_nor_published(tiny, tmp_path) -> None:
    """The loss of the only gradient step comes before the step that ruins the actor."""
    config = tiny(tmp_path / "run", actor_learning_rate=1e30, updates_per_unroll=1, num_evals=6)
    message = "eval/final_distance is NaN or infinity after iteration 3, because the policy's actions"
    with pytest.raises(FloatingPointError, match=message):
        trainer.train(config)
    assert bundle.versions(tmp_path / "run" / "policies") == [40, 80]
    assert sorted(path.name for path in (tmp_path / "run" / "snapshots").iterdir()) == ["1", "2"]


def test_parameters_that_are_not_finite_are_named(tiny, tmp_path) -> None:
    state = initial_state(tiny(tmp_path), registry.make("point_u_maze"))
    divergence.require_finite_parameters(state.train_state.params, iteration=0)
    params = state.train_state.params
    assert params.goal_encoder is not None
    output = params.goal_encoder.params["output"]
    layers = params.goal_encoder.params | {"output": output | {"bias": output["bias"].at[3].set(jnp.nan)}}
    broken = params._replace(goal_encoder=dataclasses.replace(params.goal_encoder, params=layers))
    with pytest.raises(
        FloatingPointError, match="goal_encoder.params.output.bias is NaN or infinity after iteration 0"
    ):
        divergence.require_finite_parameters(broken, iteration=0)


def test_bf16_is_refused_on_a_cpu_unless_asked_for(tiny, tmp_path) -> None:
    with pytest.raises(ConfigError, match="slower than f32 on a CPU.*--allow-bf16-on-cpu"):
        trainer.train(tiny(tmp_path / "run", precision="bf16"))
    assert not (tmp_path / "run").exists()
    outcome = trainer.train(tiny(tmp_path / "run", precision="bf16", allow_bf16_on_cpu=True))
    assert outcome.policy == tmp_path / "run" / "policies" / "240"


@pytest.mark.slow
def test_memory_that_runs_out_is_one_line_and_the_snapshot_before_it_stays(tmp_path) -> None:
    """The logits of 4,096 rows take 300 MB, of which the process, one without freed memory of others, is left 100."""
    out = tmp_path / "run"
    flags = (
        "--env=point_u_maze --preset=paper --num-envs=8 --unroll-length=5 "
        "--episode-length=20 --updates-per-unroll=1 --batch-size=4096 "
        "--max-replay-size=23 --min-replay-size=10 --actor-width=16 --critic-width=16 --eval-episodes=4 "
        f"--representation-dim=8 --num-evals=1 --out={out}"
    ).split()
    assert main([*flags, "--total-env-steps=120"]) == 0  # ends after its first gradient step
    saved = [path.name for path in (out / "snapshots").iterdir()]
    limited = [sys.executable, str(Path(__file__).with_name("limited_run.py")), "100_000_000", *flags]
    limited += ["--total-env-steps=240", "--resume"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(limited, check=False, capture_output=True, text=True, timeout=900, env=environ)
    assert ran.returncode == 1, ran.stderr
    assert "the device is out of memory; the run needs replay 0.00 GB" in ran.stderr
    assert "lower batch_size from 4096 to 2896" in ran.stderr  # where the logits take half as much
    assert "Traceback" not in ran.stderr
    assert [path.name for path in (out / "snapshots").iterdir()] == saved == ["3"]
    assert main([*flags, "--total-env-steps=240", "--resume"]) == 0
    assert bundle.versions(out / "policies") == [120, 240]


def test_eval_env_may_be_another_environment_for_the_same_robot(tiny, tmp_path, monkeypatch) -> None:
    class Finished(probes.Line):
        """Starts at its goal, and an episode is as short as the other's."""

        def begin(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jnp.zeros(2), jnp.zeros(2)

        def move(self, state: jax.Array, push: jax.Array) -> jax.Array:
            return state

    class Renamed(probes.Line):
        def __init__(self) -> None:
            super().__init__()
            self.spec = dataclasses.replace(self.spec, action_names=("thrust",))

    envs = {"ant": probes.Line(), "ant_u_maze": Finished(), "point_u_maze": Renamed()}
    monkeypatch.setattr(registry, "make", lambda name, **_: envs[name])
    trainer.train(tiny(tmp_path / "run", env="ant", eval_env="ant_u_maze"))
    assert [row["eval/time_at_goal"] for row in read_metrics(tmp_path / "run")] == [20, 20]
    with pytest.raises(
        ConfigError, match=r"eval_env point_u_maze does not fit env ant: its action_names is \('thrust',\)"
    ):
        trainer.train(tiny(tmp_path / "other", env="ant", eval_env="point_u_maze"))
    assert not (tmp_path / "other").exists()
