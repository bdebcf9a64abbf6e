"""Train a policy: `train(config)` runs the whole loop, with its clock, signals and files.

An iteration is one unroll of every environment into the replay buffer, then a round of gradient steps; each of the two
is a compiled program. The round runs in slices of a few seconds; between two slices the run looks at the clock and at
signals. An epoch is several iterations, an evaluation, a snapshot and a published policy.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from policy import bundle
from policy.bits import in_32_bits
from policy.command_line import quoted
from training import divergence, evaluation, programs, warm_start
from training.budgets import memory_budget, run_cost
from training.budgets.time_budget import TimeBudget, in_words
from training.config import TrainConfig
from training.envs import registry
from training.envs.core.goal_env import GoalEnv
from training.programs import Programs, RunState, compile_programs, initial_state, saved_part
from training.progress_display import NoProgress, Progress, Status
from training.run_dir import checkpoint, elapsed, finished, goal_report, lock, provenance, publish, references
from training.run_dir.metrics_log import MetricsLog, read_metrics
from training.stop_signals import StopRequest, stop_requested


class Outcome(NamedTuple):
    """How a run ended."""

    policy: Path | None  # the last published policy; None if there is none
    metrics: dict[str, float]  # of the last evaluation; empty if there was none
    stopped: bool  # by a signal, before its end


@in_32_bits
def train(
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
    began: float | None = None,
    stop_requested: Callable[[], AbstractContextManager[StopRequest]] = stop_requested,
) -> Outcome:
    """Train as `config` says, from the start or from the last snapshot, and publish policies along the way.

    A run to resume that is finished is left as it is, before anything is compiled.

    In the main thread, the signals of `stop_signals` end the run after the current unroll, slice of gradient steps or
    evaluation, with a snapshot. Until the programs are compiled there is nothing to save, and signals act as usual.

    Args:
        progress: receives lines of text, the state of the run and the metrics of every evaluation; None shows nothing.
        clock: seconds that never go back, for the time limit and the timings.
        began: when the command started, by `clock`; None: now.
        stop_requested: returns a context whose value says whether a signal asked the run to stop.

    Raises:
        ConfigError: the device does not support the configuration, or `init_from` does not fit it.
        RunDirError: another process trains in the folder, or it is not empty and neither resumed nor overwritten.
        SnapshotError: no snapshot is intact, or the last one belongs to another run.
        FloatingPointError: a loss or a parameter is NaN or infinity; the snapshot before it is intact.
        DivergedError: the physics of more than `config.max_diverged_share` of the worlds diverged; the snapshot before
            it is intact.
        PhysicsOverflowError: Warp's arrays are too small for the contacts; the snapshot before it is intact.
        MetricsError: the metrics of the run to resume cannot be read.
        MemoryError: the run does not fit into the device's memory.
        OSError: the folder cannot be written; earlier snapshots and policies are intact.
    """
    began, progress = clock() if began is None else began, progress or NoProgress()
    if config.resume:
        with lock.claimed(config):
            if ended := finished.describe(config):
                progress.say(ended)
                progress.say(publish.describe_policies(config))
                metrics = (read_metrics(config.out) or [{}])[-1]
                return Outcome(publish.last_policy(config), metrics, stopped=False)
    run_cost.require_device(config)
    for line in run_cost.before_start(config):
        progress.say(line)
    progress.advance(Status("preparing", of=config.iterations))
    env = registry.make(config.env, impl=config.impl)
    eval_env = evaluation.make_env(config, env)
    if config.algorithm != "crl":
        from training.algorithms import baselines  # brax's trainers are slow to import

        with lock.claimed(config) as take_over:
            take_over(provenance.collect(config, env))
            metrics = baselines.train(config, env, eval_env, progress=progress, clock=clock, began=began)
        return Outcome(None, metrics, stopped=False)
    config.policy_spec(env)  # raises an error now, not after training
    memory_budget.require_fit(config, env)
    with lock.claimed(config) as take_over:
        state, origin = _first_state(config, env, progress), provenance.collect(config, env)
        take_over(origin)  # nothing of an earlier run was deleted before this line
        publish.sweep(config)
        env_steps = programs.env_steps(config, state)
        target = config.target_entropy_per_action * env.action_size
        with MetricsLog(config, keep_until=env_steps, target_entropy=target) as log:
            _announce(config, state, progress, origin)
            compiled = compile_programs(config, env, state, eval_env=eval_env)
            progress.say(f"compiled; {in_words(clock() - began)} since the start")
            earlier = log.rows[-1] if log.rows else {}
            earlier_eval_s = earlier.get("time/total_s", 0.0) * earlier.get("time/eval_share", 0.0)
            budget = TimeBudget(
                config,
                clock=clock,
                began=began,
                earlier_s=max(earlier.get("time/total_s", 0.0), elapsed.read(config.out).total_s),
                earlier_eval_s=earlier_eval_s,
                snapshot_bytes=run_cost.bytes_of(saved_part(config, state)),
            )
            with stop_requested() as stop:
                cost = run_cost.CostReport(config)
                run = _Run(config, env, eval_env, compiled, log, progress, stop, clock, budget, cost, origin)
                return _run(run, state)


def _first_state(config: TrainConfig, env: GoalEnv, progress: Progress) -> RunState:
    """Return the state that this process starts from: a snapshot, another run's policy, or a new one."""
    fresh = initial_state(config, env)
    state = _restore(config, fresh, progress) if config.resume else fresh
    if config.init_from and state is fresh:
        return warm_start.with_params_from(config, env, state, progress=progress)
    return state


def _announce(config: TrainConfig, state: RunState, progress: Progress, origin: provenance.Origin) -> None:
    """Describe the run, before compilation, which can take minutes."""
    done = int(state.iteration)
    for line in origin.lines:
        progress.say(line)
    progress.say(
        f"{config.env}: {config.iterations} iterations, {config.steps_per_iteration:,} environment steps per iteration"
    )
    if not config.name:
        progress.say(
            f"policies of this run take the name of the environment, {config.published_name}; choose another with "
            "--name, for example if one server offers policies of several runs"
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
    progress.say(run_cost.disk(config, state.train_state.params, snapshot=saved_part(config, state)))
    progress.say(
        f"Ctrl-C or SIGTERM saves the state and ends; {config.continuation} continues. A second Ctrl-C ends "
        "immediately, without saving"
    )
    progress.advance(Status("compiling", done=done, of=config.iterations))


class _Run(NamedTuple):
    """The parts of a run that do not change."""

    config: TrainConfig
    env: GoalEnv
    eval_env: GoalEnv
    programs: Programs
    log: MetricsLog
    progress: Progress
    stop: StopRequest
    clock: Callable[[], float]
    budget: TimeBudget
    cost: run_cost.CostReport
    origin: provenance.Origin


def _run(run: _Run, state: RunState) -> Outcome:
    """Run epoch after epoch, until the steps, the target, the time or a signal ends the run."""
    config, progress = run.config, run.progress
    metrics, policy = run.log.rows[-1] if run.log.rows else {}, publish.last_policy(config)
    saved: Path | None = None  # the snapshot of `state`, if there is one
    if programs.evaluation_due(config, state):
        # The run was killed after the snapshot, before publication. If `num_evals` has changed since then, the snapshot
        # may not have been evaluated either.
        if metrics.get("env_steps") != programs.env_steps(config, state):
            metrics = _evaluate(run, state, {"physics/diverged": divergence.count(state.divergence)})
        policy, saved = _publish(run, state, metrics), config.out / "snapshots" / str(int(state.iteration))
        state = state._replace(divergence=divergence.nothing(config.num_envs))
    while not programs.is_complete(config, state) and not _target_met(run):
        if saved and run.stop.is_set():  # since the evaluation
            return _stopped(run, saved, policy=policy, metrics=metrics)
        started = run.clock()
        state, averages = _run_epoch(run, state)
        if run.stop.is_set():
            return _stopped(run, _save(run, state), policy=policy, metrics=metrics)
        metrics = _evaluate(run, state, {**averages, "time/train_s": run.clock() - started})
        state = state._replace(divergence=divergence.nothing(config.num_envs))
        started = run.clock()
        saved = _save(run, state)
        policy = _publish(run, state, metrics)
        run.budget.record("keep", run.clock() - started)
        if not programs.is_complete(config, state) and run.budget.time_is_up(
            pending_updates=int(state.pending_updates)
        ):
            progress.say(
                f"ending early: the time limit has passed (max_minutes {config.max_minutes:g}); --resume --out "
                f"{quoted(config.out)} continues"
            )
            elapsed.write(config, run.budget.total_s, time_is_up=True)
            break
    if not programs.has_learned(state):
        progress.say(
            "there was no gradient step before the last evaluation; raise --max-minutes or --total-env-steps, or lower "
            "--min-replay-size"
        )
    progress.say(f"{in_words(run.budget.total_s)} in all, {run.budget.eval_share:.0%} of it for evaluations")
    if line := references.describe(metrics, references.read(config.out)):
        progress.say(line)
    progress.say(f"curves in {run.log.draw_curves()}")
    progress.say(publish.describe_policies(config))
    return Outcome(policy, metrics, stopped=False)


def _stopped(run: _Run, saved: Path, *, policy: Path | None, metrics: dict[str, float]) -> Outcome:
    """Say where a run that a signal has stopped is saved, and return how it ended."""
    elapsed.write(run.config, run.budget.total_s)
    run.progress.say(f"stopped; saved {saved}, continue with {run.config.continuation}")
    return Outcome(policy, metrics, stopped=True)


def _target_met(run: _Run) -> bool:
    """Return whether `target_stay_rate` is met, and say so."""
    met = evaluation.target_met(run.log.rows, run.config.target_stay_rate)
    if met:
        run.progress.say(evaluation.target_message(run.config.target_stay_rate))
    return met


def _evaluate(run: _Run, state: RunState, averages: dict[str, float]) -> dict[str, float]:
    """Evaluate the current policy, log the metrics together with the epoch's `averages`, and return them."""
    done, started = int(state.iteration), run.clock()
    _report(run, state, what="evaluating")
    key = evaluation.evaluation_key(run.config.seed, done)
    evaluated = run.programs.evaluate(state.train_state.params, key=key)
    run.eval_env.require_no_overflow(evaluated.overflow)
    row = {"env_steps": programs.env_steps(run.config, state), **averages, **evaluation.summarize(evaluated)}
    run.budget.record("evaluate", run.clock() - started)
    row |= {"time/eval_share": run.budget.eval_share, "time/total_s": run.budget.total_s}
    broken = [name for name, number in row.items() if not np.isfinite(number)]
    if broken:
        raise FloatingPointError(
            f"{broken[0]} is NaN or infinity after iteration {done}, because the policy's actions are; the "
            "last snapshot is from before. Try a lower learning rate"
        )
    run.log.write(row)
    goal_report.write(run.config, evaluated, env_steps=row["env_steps"], goal_names=run.eval_env.spec.goal_names)
    run.progress.evaluated(row)
    if run.budget.may_measure_references and not run.stop.is_set():
        seconds = references.measure_once(run.config, run.programs.evaluate, state.train_state.params, clock=run.clock)
        run.budget.record("references", seconds)
    return row


def _save(run: _Run, state: RunState) -> Path:
    """Save a snapshot of a sound state, and the time of the run until then; return the snapshot's folder.

    Raises:
        FloatingPointError, PhysicsOverflowError: the state is not sound. A run cannot continue from it, so the snapshot
            before it stays the newest.
        OSError: a file cannot be written; earlier snapshots are intact.
    """
    _require_sound(run, state)
    done, folder = int(state.iteration), run.config.out / "snapshots"
    started = run.clock()
    checkpoint.save(folder, done, state=saved_part(run.config, state))
    run.budget.record("snapshot", run.clock() - started)
    elapsed.write(run.config, run.budget.total_s)  # after the snapshot: what is not saved will be trained again
    return folder / str(done)


def _require_sound(run: _Run, state: RunState) -> None:
    """Raise an error if a number that was learned is not finite, or Warp has dropped contacts."""
    run.env.require_no_overflow(run.env.overflow(state.rollout.env_state))
    learned = state.train_state.params._asdict() | {"log_temperature": state.train_state.log_temperature}
    divergence.require_finite_parameters(learned, iteration=int(state.iteration))


def _publish(run: _Run, state: RunState, metrics: dict[str, float]) -> Path:
    """Publish the current policy; return its folder."""
    version, params, origin = programs.env_steps(run.config, state), state.train_state.params, run.origin.facts
    return publish.publish(
        run.config, run.env, params, statistics=state.statistics, env_steps=version, metrics=metrics, origin=origin
    )


def _run_epoch(run: _Run, state: RunState) -> tuple[RunState, dict[str, float]]:
    """Train until an evaluation is due, the time is over, or a signal came.

    Returns:
        The state, and the metrics of the epoch: those of its gradient steps are averaged.
    """
    slices: list[dict[str, np.ndarray]] = []
    ended = False
    while not (ended or run.stop.is_set()):
        if int(state.pending_updates):
            state, metrics = _learn(run, state)
            slices.append(metrics)
        else:
            state = _collect(run, state)
        _report(run, state)
        ended = _epoch_ends(run, state)
        if run.budget.snapshot_due and not (ended or run.stop.is_set()):
            _save(run, state)
            ended = _epoch_ends(run, state)  # saving takes time
    _require_sound(run, state)
    if line := divergence.describe(state.divergence, run.env):
        run.progress.say(line)
    metrics = {name: np.concatenate([each[name] for each in slices]) for name in (slices[0] if slices else {})}
    averages = {name: float(np.mean(numbers)) for name, numbers in metrics.items()}
    return state, averages | {"physics/diverged": divergence.count(state.divergence)}


def _epoch_ends(run: _Run, state: RunState) -> bool:
    """Return whether to evaluate now. The time limit lets a round of gradient steps begin after its unroll."""
    config, pending = run.config, int(state.pending_updates)
    if programs.is_complete(config, state):
        return True
    if pending < config.updates_per_unroll and run.budget.time_is_up(pending_updates=pending):
        return True
    due = programs.evaluation_due(config, state)
    if due and not run.budget.may_evaluate:
        for line in run.cost.evaluation_skipped(run.budget):
            run.progress.say(line)
        return False
    return due


def _collect(run: _Run, state: RunState) -> RunState:
    """Run every environment for one unroll."""
    started = run.clock()
    state = jax.block_until_ready(run.programs.collect(state))
    run.budget.record("collect", run.clock() - started)
    divergence.require_few(state.divergence, run.env, run.config)
    return state


def _learn(run: _Run, state: RunState) -> tuple[RunState, dict[str, np.ndarray]]:
    """Take a slice of gradient steps; return the metrics of each, [steps]."""
    started, config, pending = run.clock(), run.config, int(state.pending_updates)
    updates = run.budget.slice_updates(pending)
    state, metrics = jax.block_until_ready(run.programs.learn(state, jnp.int32(updates)))
    first, last = config.updates_per_unroll - pending, config.updates_per_unroll - int(state.pending_updates)
    run.budget.record("update", run.clock() - started, count=last - first)
    run.env.require_no_overflow(run.env.overflow(state.rollout.env_state))
    taken = {name: np.asarray(numbers)[first:last] for name, numbers in metrics.items()}
    divergence.require_finite(taken, first=first, iteration=int(state.iteration), config=config)
    return state, taken


def _report(run: _Run, state: RunState, *, what: str = "training") -> None:
    """Report where the run is, and what it costs as soon as that is known."""
    config, done, pending = run.config, int(state.iteration), int(state.pending_updates)
    taken = config.updates_per_unroll - pending
    status = Status(
        what,
        done=done,
        of=config.iterations,
        detail=f"gradient step {taken:,} of {config.updates_per_unroll:,}" if pending and taken else "",
        steps_per_s=run.budget.steps_per_s,
        left_s=run.budget.left_s(done=done, pending_updates=pending),
    )
    run.progress.advance(status)
    for line in run.cost.after_training(run.budget, done=done, pending_updates=pending):
        run.progress.say(line)


def _restore(config: TrainConfig, fresh: RunState, progress: Progress) -> RunState:
    """Return the last snapshot, or `fresh` if none was saved yet. A replay buffer that was not saved is empty."""
    folder, published = config.out / "snapshots", bundle.versions(config.out / "policies")
    if not published and not checkpoint.any_saved(folder):
        return fresh
    restored = checkpoint.restore_latest(folder, like=saved_part(config, fresh), say=progress.say)
    reached = programs.env_steps(config, restored)
    if not config.snapshot_replay and any(version > reached for version in published):
        raise checkpoint.SnapshotError(
            f"{config.out} has published step {published[-1]}, but its last snapshot is of step {reached}. Resuming "
            "without the replay buffer would diverge from the published policies; move the later ones out of "
            "policies/, or start again with --overwrite"
        )
    if line := publish.describe_later(config, reached):
        progress.say(line)
    if config.snapshot_replay:
        return restored
    return restored._replace(replay=fresh.replay, pending_updates=fresh.pending_updates)  # nothing to learn from
