"""Train a policy: `train(config)` runs the whole loop, with its clock, signals and files.

An iteration is one unroll of every environment into the replay buffer, then a round of gradient steps; each of the two
is one compiled program. An epoch is several iterations, an evaluation, a snapshot and a published policy.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from policy import bundle
from training import evaluation, memory_budget
from training.config import ConfigError, TrainConfig
from training.envs import registry
from training.envs.core.goal_env import GoalEnv
from training.programs import Programs, RunState, compile_programs, initial_state
from training.progress_display import NoProgress, Progress
from training.run_dir import checkpoint, lock, publish
from training.run_dir.metrics_log import MetricsLog


class Outcome(NamedTuple):
    """How a run ended."""

    policy: Path | None  # the last published policy; None if there is none
    metrics: dict[str, float]  # of the last evaluation; empty if there was none
    stopped: bool  # by a signal, before its end


def train(
    config: TrainConfig, *, progress: Progress | None = None, clock: Callable[[], float] = time.monotonic
) -> Outcome:
    """Train as `config` says, from the start or from the last snapshot, and publish policies along the way.

    In the main thread, SIGTERM and SIGINT end the run after the current iteration, with a snapshot. Until the programs
    are compiled there is nothing to save, and signals act as usual.

    Args:
        progress: receives lines of text, the iteration count and the metrics of every evaluation; None shows nothing.
        clock: seconds that never go back, for the time limit and the timings.

    Raises:
        ConfigError: the device does not support the configuration.
        RunDirError: another process trains in the folder, or it is not empty and neither resumed nor overwritten.
        SnapshotError: the last snapshot cannot be read, or belongs to another run.
        FloatingPointError: a loss or a parameter is NaN or infinity; the snapshot before it is intact.
        PhysicsOverflowError: Warp's arrays are too small for the contacts; the snapshot before it is intact.
        MemoryError: the run does not fit into the device's memory.
        OSError: the folder cannot be written; earlier snapshots and policies are intact.
    """
    began, progress = clock(), progress or NoProgress()
    require_device(config)
    env = registry.make(config.env, impl=config.impl)
    eval_env = evaluation.make_env(config, env)
    if config.algorithm != "crl":
        from training.algorithms import baselines  # brax's trainers are slow to import

        with lock.claimed(config) as take_over:
            take_over()
            metrics = baselines.train(config, env, eval_env, progress=progress, clock=clock)
        return Outcome(None, metrics, stopped=False)
    config.policy_spec(env)  # raises an error now, not after training
    memory_budget.require_fit(config, env)
    with lock.claimed(config) as take_over:
        state = initial_state(config, env)
        if config.resume:
            state = _restore(config, state)
        take_over()  # nothing was written or deleted before this line
        env_steps = int(state.iteration) * config.steps_per_iteration
        target = config.target_entropy_per_action * env.action_size
        with MetricsLog(config.out, title=config.title, keep_until=env_steps, target_entropy=target) as log:
            _announce(config, state, progress)
            programs = compile_programs(config, env, state)
            progress.say(f"compiled in {clock() - began:.0f} s")
            earlier_s = log.rows[-1].get("time/total_s", 0.0) if log.rows else 0.0
            with _stop_signals() as stop:
                run = _Run(config, env, eval_env, programs, log, progress, stop, clock, began, earlier_s)
                return _run(run, state)


def _announce(config: TrainConfig, state: RunState, progress: Progress) -> None:
    """Describe the run, before compilation, which can take minutes."""
    done = int(state.iteration)
    progress.say(
        f"{config.env}: {config.iterations} iterations, {config.steps_per_iteration:,} environment steps per iteration"
    )
    if done:
        progress.say(f"resuming from {config.out / 'snapshots' / str(done)}")
    missing = max(0, config.min_replay_size - int(state.replay.held))
    if missing:
        first = -(-missing // config.unroll_length) + 1
        progress.say(f"learning starts in iteration {done + first}, when the replay buffer has min_replay_size steps")
    if not config.snapshot_replay:
        progress.say(
            "snapshots do not contain the replay buffer: a resumed run fills it again before it learns, so it does not "
            "end with the same parameters as a run without interruption"
        )
    progress.advance("compiling", done=done, of=config.iterations)


class _Run(NamedTuple):
    """The parts of a run that do not change."""

    config: TrainConfig
    env: GoalEnv
    eval_env: GoalEnv
    programs: Programs
    log: MetricsLog
    progress: Progress
    stop: threading.Event  # set when a signal asks the run to stop
    clock: Callable[[], float]
    began: float  # when this process began, by `clock`
    earlier_s: float  # seconds that earlier processes of this run took

    @property
    def out_of_time(self) -> bool:
        return self.clock() - self.began >= self.config.max_minutes * 60


def _run(run: _Run, state: RunState) -> Outcome:
    """Run epoch after epoch, until the steps, the share of goals, the time or a signal ends the run."""
    config, progress = run.config, run.progress
    done = int(state.iteration)
    metrics, policy = run.log.rows[-1] if run.log.rows else {}, publish.last_policy(config)
    if _evaluation_due(config, done):
        # The run was killed after the snapshot, before publication. If `num_evals` has changed since then, the snapshot
        # may not have been evaluated either.
        if metrics.get("env_steps") != done * config.steps_per_iteration:
            metrics = _evaluate(run, state, {})
        policy = publish.publish(config, run.env, state.train_state.params, iteration=done, metrics=metrics)
    while done < config.iterations and not _target_met(run):
        started, before = run.clock(), done
        state, averages, done = _run_epoch(run, state)
        if run.stop.is_set() and not (done > before and _evaluation_due(config, done)):
            checkpoint.save(config.out / "snapshots", done, state=_to_save(config, state))
            progress.say(f"stopped; saved {config.out / 'snapshots' / str(done)}, continue with --resume")
            return Outcome(policy, metrics, stopped=True)
        metrics = _evaluate(run, state, {**averages, "time/train_s": run.clock() - started})
        checkpoint.save(config.out / "snapshots", done, state=_to_save(config, state))
        policy = publish.publish(config, run.env, state.train_state.params, iteration=done, metrics=metrics)
        if run.out_of_time:
            progress.say(f"ending early: the time limit has passed (max_minutes {config.max_minutes:g})")
            break
    if "loss/critic" not in metrics:
        progress.say(
            "there was no gradient step before the last evaluation; raise --max-minutes or --total-env-steps, or lower "
            "--min-replay-size"
        )
    progress.say(f"curves in {run.log.draw_curves()}")
    progress.say(publish.describe_policies(config))
    return Outcome(policy, metrics, stopped=False)


def _target_met(run: _Run) -> bool:
    """Return whether `target_stay_rate` is met, and say so."""
    met = evaluation.target_met(run.log.rows, run.config.target_stay_rate)
    if met:
        run.progress.say(evaluation.target_message(run.config.target_stay_rate))
    return met


def _evaluate(run: _Run, state: RunState, averages: dict[str, float]) -> dict[str, float]:
    """Evaluate the current policy, log the metrics together with the epoch's `averages`, and return them."""
    done = int(state.iteration)
    key = evaluation.evaluation_key(run.config.seed, done)
    evaluated = run.programs.evaluate(state.train_state.params, key=key)
    run.eval_env.require_no_overflow(evaluated.overflow)
    row = {"env_steps": done * run.config.steps_per_iteration, **averages, **evaluation.summarize(evaluated)}
    row["time/total_s"] = run.earlier_s + run.clock() - run.began
    broken = [name for name, number in row.items() if not np.isfinite(number)]
    if broken:
        raise FloatingPointError(
            f"{broken[0]} is NaN or infinity after iteration {done}, because the policy's actions are; the "
            "last snapshot is from before. Try a lower learning rate"
        )
    run.log.write(row)
    run.progress.evaluated(row)
    return row


def _run_epoch(run: _Run, state: RunState) -> tuple[RunState, dict[str, float], int]:
    """Iterate until the next evaluation is due, the time is over, or a signal came.

    Returns:
        The state, the gradient steps' metrics averaged over the epoch, and the iterations done.
    """
    config = run.config
    done, held = int(state.iteration), int(state.replay.held)
    until = min(config.iterations, (done // config.iterations_per_epoch + 1) * config.iterations_per_epoch)
    rows: list[dict[str, np.ndarray]] = []
    while done < until and not run.stop.is_set() and not (rows and run.out_of_time):
        state = run.programs.collect(state)
        if held >= config.min_replay_size:
            state, metrics = run.programs.learn(state)
            rows.append({name: np.asarray(numbers) for name, numbers in metrics.items()})
            run.env.require_no_overflow(run.env.overflow(state.rollout.env_state))
            _require_finite(rows[-1], iteration=done, config=config)
        held = min(held + config.unroll_length, config.max_replay_size)
        done += 1
        run.progress.advance("training", done=done, of=config.iterations)
    run.env.require_no_overflow(run.env.overflow(state.rollout.env_state))
    _require_finite_parameters(jax.block_until_ready(state))  # also waits where no gradient step did
    averages = {name: float(np.mean([row[name] for row in rows])) for name in (rows[0] if rows else {})}
    return state, averages, done


def _evaluation_due(config: TrainConfig, done: int) -> bool:
    """Return whether an epoch ends after `done` iterations."""
    return done >= config.iterations or (done > 0 and done % config.iterations_per_epoch == 0)


@contextlib.contextmanager
def _stop_signals() -> Generator[threading.Event]:
    """Set an event on SIGTERM and SIGINT; a second SIGINT raises KeyboardInterrupt. Only in the main thread."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _to_save(config: TrainConfig, state: RunState) -> RunState:
    """Return what goes into a snapshot."""
    return state if config.snapshot_replay else state._replace(replay=None)  # pyright: ignore[reportArgumentType]


def _restore(config: TrainConfig, fresh: RunState) -> RunState:
    """Return the last snapshot, or `fresh` if none was saved yet. A replay buffer that was not saved is empty."""
    folder, published = config.out / "snapshots", bundle.versions(config.out / "policies")
    if not published and not checkpoint.any_saved(folder):
        return fresh
    restored = checkpoint.restore_latest(folder, like=_to_save(config, fresh))
    reached = int(restored.iteration) * config.steps_per_iteration
    if not config.snapshot_replay and any(version > reached for version in published):
        raise checkpoint.SnapshotError(
            f"{config.out} has published step {published[-1]}, but its last snapshot is of step {reached}. Resuming "
            "without the replay buffer would diverge from the published policies; move the later ones out of "
            "policies/, or start again with --overwrite"
        )
    return restored if config.snapshot_replay else restored._replace(replay=fresh.replay)


def require_device(config: TrainConfig) -> None:
    """Refuse a precision that is slow on this device, unless `config` allows it.

    Raises:
        ConfigError: bf16 on a CPU.
    """
    if config.precision == "bf16" and jax.default_backend() == "cpu" and not config.allow_bf16_on_cpu:
        raise ConfigError(
            "precision bf16 is slower than f32 on a CPU, which has no bf16 arithmetic; use --precision f32, or add "
            "--allow-bf16-on-cpu to try it"
        )


def _require_finite(metrics: dict[str, np.ndarray], *, iteration: int, config: TrainConfig) -> None:
    """Raise FloatingPointError for the first metric that is not finite; each has one value per gradient step."""
    first = {name: int(np.argmin(np.isfinite(numbers))) for name, numbers in metrics.items()}
    broken = {name: step for name, step in first.items() if not np.isfinite(metrics[name][step])}
    if broken:
        name = min(broken, key=lambda name: broken[name])
        raise FloatingPointError(
            f"{name} is NaN or infinity in gradient step {broken[name] + 1} of {config.updates_per_unroll} of "
            f"iteration {iteration + 1}; the last snapshot is from before. Try a lower learning rate"
        )


def _require_finite_parameters(state: RunState) -> None:
    """Raise FloatingPointError for a parameter that is not finite: the last step's losses were computed before it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.train_state.params):
        if not np.isfinite(np.asarray(leaf)).all():
            raise FloatingPointError(
                f"{jax.tree_util.keystr(path, simple=True, separator='.')} is NaN or infinity after iteration "
                f"{int(state.iteration)}; the last snapshot is from before. Try a lower learning rate"
            )
