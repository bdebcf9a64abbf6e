"""Runs against the clock and with signals: when they evaluate, when they end, and how they go on."""

import errno
import io
import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from policy import bundle
from tests.training.fake_clock import FakeClock, set_times
from training import programs, trainer
from training.divergence import Divergence
from training.envs import registry
from training.envs.core.physics import PhysicsOverflowError
from training.programs import RunState, initial_state
from training.progress_display import ConsoleProgress
from training.run_dir import checkpoint, elapsed
from training.run_dir.metrics_log import read_metrics

pytestmark = pytest.mark.usefixtures("without_physics")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def require_same_policy(one: Path, other: Path, version: int) -> None:
    """Compare the parameters of two published policies bit for bit."""
    ours, theirs = (jax.tree.leaves(bundle.read(run / "policies" / str(version)).params) for run in (one, other))
    for left, right in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(left, right)


def interrupt_at(*slices: int):
    """Return a function that sends SIGTERM to this process at its n-th call, for each n of `slices`."""
    number = itertools.count(1)

    def called() -> None:
        if next(number) in slices:
            signal.raise_signal(signal.SIGTERM)

    return called


def test_a_run_ends_with_its_evaluation_within_the_limit(tiny, tmp_path, monkeypatch, clock) -> None:
    """Compiling takes 20 s, an iteration 1 + 3 x 1.5 s, the evaluation 9 s instead of the 4 s that are expected."""
    set_times(monkeypatch, clock, compiling=20, collect=1, update=1.5, evaluate=9)
    config = tiny(tmp_path / "run", total_env_steps=100_000, num_evals=1, max_minutes=1)
    outcome = trainer.train(config, clock=clock)
    assert len(read_metrics(tmp_path / "run")) == 1
    assert outcome.policy is not None
    assert 57 < clock.now <= 66


def test_the_time_counts_from_the_start_of_the_command(tiny, tmp_path, monkeypatch, clock) -> None:
    set_times(monkeypatch, clock, collect=1, update=0.5, evaluate=2)
    clock.now = 130.0  # 30 s for imports
    config = tiny(tmp_path / "run", total_env_steps=100_000, num_evals=1, max_minutes=1)
    trainer.train(config, clock=clock, began=100.0)
    assert 150 < clock.now <= 160


def test_a_run_whose_time_is_over_once_compiled_ends_after_its_first_evaluation(
    tiny, tmp_path, monkeypatch, clock
) -> None:
    set_times(monkeypatch, clock, compiling=200, collect=1, update=1, evaluate=6)
    told = rich.console.Console(file=io.StringIO(), width=10_000)
    config = tiny(tmp_path / "run", total_env_steps=100_000, num_evals=1, max_minutes=1)
    trainer.train(config, clock=clock, progress=ConsoleProgress(told, clock=clock))
    assert clock.now == 207
    assert [row["env_steps"] for row in read_metrics(tmp_path / "run")] == [40]
    assert "there was no gradient step before the last evaluation; raise --max-minutes" in told.file.getvalue()


def test_evaluations_that_take_too_long_are_left_out_and_change_nothing(
    finished: Path, tiny, tmp_path, monkeypatch, clock
) -> None:
    set_times(monkeypatch, clock, collect=1, update=1, evaluate=5)
    told = rich.console.Console(file=io.StringIO(), width=10_000)
    config = tiny(tmp_path / "run", max_eval_share=0.2, num_evals=6)
    trainer.train(config, clock=clock, progress=ConsoleProgress(told, clock=clock))
    assert [row["env_steps"] for row in read_metrics(tmp_path / "run")] == [40, 80, 240]
    require_same_policy(finished, tmp_path / "run", 240)
    assert told.file.getvalue().count("there are fewer than --num-evals 6, so that they take at most 20% of the") == 1


def test_evaluations_take_the_share_that_is_allowed(tiny, tmp_path, monkeypatch, clock) -> None:
    """There are 12 iterations of 4 s each, and an evaluation of 1 s is due after each; one more is of other actions."""
    set_times(monkeypatch, clock, collect=1, update=1, evaluate=1)
    config = tiny(tmp_path / "run", max_eval_share=0.2, total_env_steps=40 * 12, num_evals=12)
    trainer.train(config, clock=clock)
    rows = read_metrics(tmp_path / "run")
    assert 1 < len(rows) < 12
    assert rows[-1]["time/eval_share"] == pytest.approx((len(rows) + 1) / clock.now)
    assert rows[-1]["time/eval_share"] <= 0.2
    assert rows[-1]["env_steps"] == 480


def test_a_run_stopped_twice_within_a_round_ends_as_one_that_was_never_stopped(
    finished: Path, tiny, tmp_path, monkeypatch, clock
) -> None:
    """A gradient step takes 6 s, so it is a slice. The second stop of a round replaces the first snapshot."""
    out = tmp_path / "run"
    set_times(monkeypatch, clock, update=6, after_learn=interrupt_at(1, 2))
    outcome = trainer.train(tiny(out), clock=clock)
    assert outcome.stopped
    fresh = initial_state(tiny(out), registry.make("point_u_maze"))
    for taken in (1, 2):
        assert [path.name for path in (out / "snapshots").iterdir()] == ["3"]
        state = checkpoint.restore_latest(out / "snapshots", like=fresh)
        assert (int(state.iteration), int(state.pending_updates)) == (3, 3 - taken)
        outcome = trainer.train(tiny(out, resume=True), clock=clock)
    assert not outcome.stopped
    assert [row["env_steps"] for row in read_metrics(out)] == [120, 240]
    for version in (120, 240):
        require_same_policy(finished, out, version)


def test_a_run_whose_time_ends_within_a_round_publishes_and_goes_on(
    finished: Path, tiny, tmp_path, monkeypatch, clock
) -> None:
    """Of the first round, one gradient step of three fits: the policy's version counts a third of its 40 steps."""
    out = tmp_path / "run"
    set_times(monkeypatch, clock, update=20)
    trainer.train(tiny(out, max_minutes=0.6), clock=clock)
    (row,) = read_metrics(out)
    assert row["env_steps"] == 80 + 13
    with (out / "metrics.jsonl").open("a") as log:  # as by a process that was killed before its snapshot
        log.write(json.dumps(row | {"env_steps": 120}) + "\n")
    trainer.train(tiny(out, resume=True), clock=clock)
    assert [row["env_steps"] for row in read_metrics(out)] == [93, 120, 240]
    assert bundle.versions(out / "policies") == [93, 120, 240]
    require_same_policy(finished, out, 240)


def test_a_run_stopped_while_it_evaluates_saves_and_publishes_what_it_evaluated(
    finished: Path, tiny, tmp_path, monkeypatch, clock
) -> None:
    """It stops after that evaluation of 5 s, and evaluates no other actions before."""
    out, saved = tmp_path / "run", []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *given, **named: (saved.append(given[1]), save(*given, **named)))
    set_times(monkeypatch, clock, evaluate=5, while_evaluating=interrupt_at(1))
    outcome = trainer.train(tiny(out), clock=clock)
    assert outcome == (out / "policies" / "120", read_metrics(out)[-1], True)
    assert clock.now == 5
    assert saved == [3]
    assert elapsed.read(out).total_s == 5
    assert (out / "curves.png").exists()
    trainer.train(tiny(out, resume="auto"), clock=clock)
    require_same_policy(finished, out, 240)


def change_programs(monkeypatch: pytest.MonkeyPatch, **changes: Callable[..., Any]) -> None:
    """Let each of these programs of a run return what the function of its name makes of its result."""
    compile_programs = trainer.compile_programs

    def changed(*arguments: Any, **options: Any) -> programs.Programs:
        compiled = compile_programs(*arguments, **options)

        def wrap(name: str) -> Callable[..., Any]:
            return lambda *given: changes[name](getattr(compiled, name)(*given))

        return compiled._replace(**{name: wrap(name) for name in changes})

    monkeypatch.setattr(trainer, "compile_programs", changed)


def restart_a_world(state: RunState) -> RunState:
    restarts = state.divergence.restarts.at[0].add(1)
    return state._replace(divergence=Divergence(restarts, part=jnp.int32(0)))


def test_a_run_stopped_before_an_evaluation_goes_on_as_one_that_was_never_stopped(
    tiny, tmp_path, monkeypatch, clock
) -> None:
    """The second slice of gradient steps ends the round before the evaluation. A world diverges in each unroll."""
    out, told = tmp_path / "run", rich.console.Console(file=io.StringIO(), width=10_000)
    change_programs(monkeypatch, collect=restart_a_world)
    with monkeypatch.context() as patch:
        set_times(patch, clock, after_learn=interrupt_at(2))
        assert trainer.train(tiny(out), clock=clock).stopped
    trainer.train(tiny(out, num_evals=1, total_env_steps=120, resume=True), progress=ConsoleProgress(told))
    assert "there was no gradient step" not in told.file.getvalue()
    trainer.train(tiny(out, resume=True))
    assert [row["env_steps"] for row in read_metrics(out)] == [120, 240]
    assert [row["physics/diverged"] for row in read_metrics(out)] == [3, 3]


def test_a_run_stopped_while_a_resumed_one_evaluates_saves_nothing_again(tiny, tmp_path, monkeypatch, clock) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        set_times(patch, clock, after_learn=interrupt_at(2))
        assert trainer.train(tiny(out), clock=clock).stopped
    set_times(monkeypatch, clock, evaluate=5, while_evaluating=interrupt_at(1))
    monkeypatch.setattr(checkpoint, "save", pytest.fail)
    outcome = trainer.train(tiny(out, resume=True), clock=clock)
    assert outcome == (out / "policies" / "120", read_metrics(out)[-1], True)
    assert elapsed.read(out).total_s == 5


def without(part: str) -> Callable[[tuple[RunState, Any]], tuple[RunState, Any]]:
    """Return a function that makes NaN of this part of what is learned, after the second of three gradient steps."""

    def spoil(learned: tuple[RunState, Any]) -> tuple[RunState, Any]:
        state, metrics = learned  # the metrics come from before the step
        broken = jax.tree.map(lambda leaf: leaf * jnp.nan, getattr(state.train_state, part))
        spoiled = state._replace(train_state=state.train_state._replace(**{part: broken}))
        return (spoiled if int(state.pending_updates) == 1 else state), metrics

    return spoil


@pytest.mark.parametrize("part", ["params", "log_temperature"])
def test_what_is_not_finite_does_not_become_the_newest_snapshot_between_evaluations(
    tiny, tmp_path, monkeypatch, clock, part: str
) -> None:
    """A snapshot is due after each gradient step."""
    out = tmp_path / "run"
    set_times(monkeypatch, clock, update=6)
    change_programs(monkeypatch, learn=without(part))
    with pytest.raises(FloatingPointError, match="^(actor|log_temp).* is NaN or infinity after iteration 3; the last"):
        trainer.train(tiny(out, num_evals=1, snapshot_minutes=0.1), clock=clock)
    fresh = initial_state(tiny(tmp_path), registry.make("point_u_maze"))
    state = checkpoint.restore_latest(out / "snapshots", like=fresh)
    assert (int(state.iteration), int(state.pending_updates)) == (3, 2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.train_state))


def test_an_unroll_that_overflowed_does_not_become_the_newest_snapshot(tiny, tmp_path, monkeypatch, clock) -> None:
    """A snapshot is due after each unroll. In the second one, not all contacts fit into Warp's arrays."""
    out, line, full = tmp_path / "run", registry.make("point_u_maze"), set[int]()

    def collected(state: RunState) -> RunState:
        full.update({int(state.iteration)} & {2})
        return state

    def require_no_overflow(flags: jax.Array) -> None:
        if np.any(flags):
            raise PhysicsOverflowError("too many contacts")

    monkeypatch.setattr(line, "overflow", lambda _: jnp.int32(len(full)))
    monkeypatch.setattr(line, "require_no_overflow", require_no_overflow)
    set_times(monkeypatch, clock, collect=6)
    change_programs(monkeypatch, collect=collected)
    with pytest.raises(PhysicsOverflowError):
        trainer.train(tiny(out, num_evals=1, snapshot_minutes=0.1), clock=clock)
    assert [path.name for path in (out / "snapshots").iterdir()] == ["1"]


def test_auto_counts_the_time_of_all_processes_and_leaves_alone_a_run_whose_time_is_up(
    tiny, tmp_path, monkeypatch, clock
) -> None:
    """An iteration takes 1 + 3 x 2 s, and 1 minute is the limit. The first process is stopped after 14 s."""
    out, told = tmp_path / "run", rich.console.Console(file=io.StringIO(), width=10_000)
    set_times(monkeypatch, clock, collect=1, update=2, after_learn=interrupt_at(2))
    endless = {"total_env_steps": 100_000, "num_evals": 1, "resume": "auto"}
    limited = tiny(out, **endless, max_minutes=1)
    assert trainer.train(limited, clock=clock).stopped
    first_s = clock.now
    assert elapsed.read(out) == (first_s, 0)
    assert not trainer.train(limited, clock=clock).stopped
    assert 50 < clock.now <= 60
    assert read_metrics(out)[-1]["time/total_s"] == clock.now
    ended_s = clock.now
    assert elapsed.read(out) == (ended_s, 1)
    progress = ConsoleProgress(told, clock=clock)
    assert not trainer.train(limited, clock=clock, progress=progress).stopped
    assert clock.now == ended_s
    assert told.file.getvalue().splitlines()[0] == (
        f"{out} is finished: it has trained for max_minutes 1; raise --max-minutes to go on, or use --resume without "
        "auto for as many minutes again"
    )
    trainer.train(tiny(out, **endless, max_minutes=1.5), clock=clock)  # counts on
    assert ended_s + 20 < clock.now <= 90
    ended_s = clock.now
    trainer.train(tiny(out, **endless | {"resume": True}, max_minutes=0.5), clock=clock)  # counts anew
    assert ended_s + 20 < clock.now <= ended_s + 30
    ended_s = clock.now
    trainer.train(tiny(out, **endless, max_minutes=1.5), clock=clock)  # more than its 90 s have passed
    assert clock.now == ended_s


def test_the_time_since_a_snapshot_does_not_count_if_the_next_one_fails(tiny, tmp_path, monkeypatch, clock) -> None:
    out, save, saved_s = tmp_path / "run", checkpoint.save, list[float]()
    set_times(monkeypatch, clock, update=2)

    def fail_the_second_time(*arguments: Any, **options: Any) -> None:
        if saved_s:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*arguments, **options)
        saved_s.append(clock.now)

    monkeypatch.setattr(checkpoint, "save", fail_the_second_time)
    with pytest.raises(OSError, match="No space left on device"):
        trainer.train(tiny(out), clock=clock)
    assert clock.now > saved_s[0] > 0
    assert elapsed.read(out) == (saved_s[0], 0)


def test_without_its_replay_a_snapshot_within_a_round_does_not_go_on_with_the_round(
    tiny, tmp_path, monkeypatch, clock
) -> None:
    out, small = tmp_path / "run", {"snapshot_replay": False, "total_env_steps": 400, "num_evals": 1}
    set_times(monkeypatch, clock, update=6, after_learn=interrupt_at(1))
    assert trainer.train(tiny(out, **small), clock=clock).stopped
    trainer.train(tiny(out, **small, resume=True), clock=clock)
    fresh = initial_state(tiny(out), registry.make("point_u_maze"))
    state = checkpoint.restore_latest(out / "snapshots", like=fresh._replace(replay=None))
    # one gradient step before; afterwards two iterations fill the replay, and five have a round
    assert int(jax.tree.leaves(state.train_state.optimizer)[0]) == 1 + 3 * 5


@pytest.mark.slow  # compiles three programs twice
@pytest.mark.parametrize("block", [1, 3])
def test_a_round_in_slices_is_the_round_at_once(tiny, tmp_path, monkeypatch, block: int) -> None:
    """With blocks, as on a GPU, and without; each metric is where its gradient step is."""
    monkeypatch.setattr(programs, "steps_per_block", lambda _: block)
    config = tiny(tmp_path, updates_per_unroll=6)
    env = registry.make(config.env)
    start = initial_state(config, env)
    compiled = programs.compile_programs(config, env, start)
    ends, figures = [], []
    for sizes in ((6,), (1, 2, 3)):
        state = initial_state(config, env)
        for _ in range(3):
            state = compiled.collect(state)
        parts = []
        for size in sizes:
            if int(state.pending_updates):
                first = 6 - int(state.pending_updates)
                state, metrics = compiled.learn(state, np.int32(size))
                parts.append(np.asarray(metrics["loss/critic"])[first : 6 - int(state.pending_updates)])
        assert int(state.pending_updates) == 0
        ends.append(state._replace(key=jax.random.key_data(state.key)))
        figures.append(np.concatenate(parts))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    np.testing.assert_array_equal(*figures)
    assert len(np.unique(figures[0])) == 6


def test_a_log_file_says_what_a_terminal_says(tiny, tmp_path, monkeypatch, clock) -> None:
    set_times(monkeypatch, clock, compiling=20, collect=1, update=1, evaluate=2)
    log = rich.console.Console(file=io.StringIO(), width=10_000)
    out = tmp_path / "run"
    trainer.train(tiny(out), clock=clock, progress=ConsoleProgress(log, clock=clock))
    lines = log.file.getvalue().splitlines()
    assert lines[0].startswith("device: CPU, ")
    assert any(line.startswith("disk: up to ") and "for 2 policies" in line for line in lines)
    assert f"Ctrl-C or SIGTERM saves the state and ends; --resume --out {out} continues" in log.file.getvalue()
    assert "compiled; 20 s since the start" in lines
    # after 5 iterations of 40 steps, of 1 + 3 x 1 s each: one to go, and an evaluation of 2 s
    assert any(line == "about 10 environment steps/s; the remaining 40 steps take about 6 s" for line in lines)
    evaluation = next(line for line in lines if line.strip().startswith("120 steps "))
    assert evaluation.endswith("  12 s left")
    # 20 + 6 x 1 + 4 x 3 x 1 + 3 x 2, of which one is of random and zero actions
    assert lines[-4] == "44 s in all, 14% of it for evaluations"
    assert lines[-3].startswith("stay: trained ")


def test_a_resumed_run_uses_the_programs_of_one_that_begins(tiny, tmp_path: Path) -> None:
    """Types are in the key of a compiled program, also whether a type gives way to others."""
    fresh = initial_state(tiny(tmp_path), registry.make("point_u_maze"))
    checkpoint.save(tmp_path, 0, state=fresh)
    expected = jax.tree.map(jax.typeof, fresh)
    assert jax.tree.map(jax.typeof, checkpoint.restore_latest(tmp_path, like=fresh)) == expected
