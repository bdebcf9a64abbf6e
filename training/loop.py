"""The training loop: the impure shell around the pure functions, with the clock, the files and the record.

An iteration is one unroll of every environment and a round of gradient steps, a compiled program each. An epoch is some
iterations, an evaluation, a snapshot and a published policy.
"""

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console

from policy import bundle
from policy.energy import ENERGIES
from policy.layers import Execution
from policy.networks import init_policy
from training import evaluate, losses, memory, publication, relabel, replay, rollout, run_folder, snapshot
from training.config import ConfigError, TrainConfig
from training.envs import registry
from training.envs.base import GoalEnv
from training.report import Report
from training.update import Learner, Updater


class TrainerState(NamedTuple):
    """Everything that a run continues from."""

    learner: Learner
    robots: rollout.Robots
    replay: replay.Replay
    key: jax.Array
    iteration: jax.Array  # int32, unrolls done


class Programs(NamedTuple):
    """The compiled programs of a run."""

    collect: Callable[[TrainerState], TrainerState]  # one unroll into the replay
    learn: Callable[[TrainerState], tuple[TrainerState, dict[str, jax.Array]]]  # a round of gradient steps, metrics [n]
    evaluate: Callable[..., evaluate.Evaluation]  # (actor, key=...)


class Outcome(NamedTuple):
    """How a run ended."""

    policy: Path | None  # the last published policy; None if the run was stopped before the first
    metrics: dict[str, float]  # of the last evaluation; empty if there was none
    stopped: bool  # by a signal, before its end


def train(
    config: TrainConfig, *, console: rich.console.Console, clock: Callable[[], float] = time.monotonic
) -> Outcome:
    """Train as `config` says, from the start or from the last snapshot, and publish along the way.

    SIGTERM and SIGINT end the run after the iteration in progress, with a snapshot. Until the programs are compiled
    there is nothing to save, and signals do what they do elsewhere.

    Args:
        console: where progress is shown.
        clock: seconds that never go back, for the time limit and the timings.

    Raises:
        ConfigError: the device cannot do what the configuration asks for.
        OutputFolderError: another process trains in the folder, or it holds what is neither resumed nor overwritten.
        SnapshotError: the last snapshot cannot be read, or is of another run.
        FloatingPointError: a loss is no longer finite; the snapshot before it is intact.
        PhysicsOverflowError: Warp has no room for the robots' contacts; the snapshot before is intact.
        MemoryError: the device has no room for the run.
        OSError: the folder cannot be written; earlier snapshots and policies are intact.
    """
    began = clock()
    require_device(config)
    env = registry.make(config.env, impl=config.physics)
    judged = evaluate.environment(config, env)  # refused before anything is touched, if it does not fit
    config.spec(env)  # likewise what could not be published
    memory.require_fit(config, env)
    with run_folder.claimed(config) as take_folder:
        state = initial_state(config, env)
        if config.resume:
            state = _restore(config, state)
        take_folder()  # nothing was written or deleted before this line
        done = int(state.iteration)
        with Report(config.out, keep_until=done * config.steps_per_iteration, console=console) as report:
            _announce(config, state, report)
            programs = compile_programs(config, env, state)
            report.say(f"compiled in {clock() - began:.0f} s")
            earlier = report.rows[-1].get("time/total_s", 0.0) if report.rows else 0.0
            with _stop_signals() as stop:
                run = _Run(config, env, judged, programs, report, stop, clock=clock, began=began, earlier_s=earlier)
                return _run(run, state)


def _announce(config: TrainConfig, state: TrainerState, report: Report) -> None:
    """Say what is about to happen, before minutes of compiling."""
    done = int(state.iteration)
    report.say(f"{config.env}: {config.iterations} iterations of {config.steps_per_iteration:,} environment steps")
    if done:
        report.say(f"continuing from {config.out / 'snapshots' / str(done)}")
    missing = max(0, config.replay_min - int(state.replay.held))
    if missing:
        report.say(f"learning begins after {-(-missing // config.unroll)} of them, once the replay holds enough")
    if config.snapshot_replay == "off":
        report.say(
            "snapshots leave out the replay: a run resumed from one fills it anew before it learns on, and so does not "
            "end with the same parameters as one that was never stopped"
        )
    report.advance("compiling", done=done, of=config.iterations)


class _Run(NamedTuple):
    """What stays the same throughout a run."""

    config: TrainConfig
    env: GoalEnv
    judged: GoalEnv  # what is evaluated on
    programs: Programs
    report: Report
    stop: threading.Event  # set once a signal asks for the end
    clock: Callable[[], float]
    began: float  # of this process
    earlier_s: float  # that processes before this one took

    @property
    def out_of_time(self) -> bool:
        return self.clock() - self.began >= self.config.max_minutes * 60


def _run(run: _Run, state: TrainerState) -> Outcome:
    """Epoch after epoch, until the steps, the goal, the time or a signal ends the run."""
    config, report = run.config, run.report
    done = int(state.iteration)
    metrics, policy = report.rows[-1] if report.rows else {}, publication.last_policy(config)
    if _evaluation_due(config, done):
        # a kill between the snapshot and the policy leaves the policy to publish; other epochs, the evaluation too
        if metrics.get("env_steps") != done * config.steps_per_iteration:
            metrics = _evaluate(run, state, {})
        policy = publication.publish_once(config, run.env, state.learner.params, iteration=done, metrics=metrics)
    while done < config.iterations:
        started, before = run.clock(), done
        state, averages, done = _run_epoch(run, state)
        if run.stop.is_set() and not (done > before and _evaluation_due(config, done)):
            snapshot.save(config.out / "snapshots", done, state=_to_save(config, state))
            report.say(f"stopped; saved in {config.out / 'snapshots' / str(done)}, --resume continues")
            return Outcome(policy, metrics, stopped=True)
        metrics = _evaluate(run, state, {**averages, "time/train_s": run.clock() - started})
        snapshot.save(config.out / "snapshots", done, state=_to_save(config, state))
        policy = publication.publish_once(config, run.env, state.learner.params, iteration=done, metrics=metrics)
        if metrics["eval/success_any"] >= config.stop_at_share:
            report.say(f"the share of {config.stop_at_share:g} is reached")
            break
        if run.out_of_time:
            report.say(f"the limit of {config.max_minutes:g} minutes is reached")
            break
    if "loss/critic" not in metrics:
        report.say("no gradient step came before the last evaluation; give the run more minutes or environment steps")
    report.say(f"curves in {report.draw_curves()}, policy in {policy}")
    return Outcome(policy, metrics, stopped=False)


def _evaluate(run: _Run, state: TrainerState, averages: dict[str, float]) -> dict[str, float]:
    """Evaluate the policy as it is and record the result, with `averages` of the epoch; return the row."""
    done = int(state.iteration)
    key = evaluate.evaluation_key(run.config.seed, done)
    evaluation = run.programs.evaluate(state.learner.params.actor, key=key)
    run.judged.require_no_overflow(evaluation.overflow)
    row = {"env_steps": done * run.config.steps_per_iteration, **averages, **evaluate.summarise(evaluation)}
    row["time/total_s"] = run.earlier_s + run.clock() - run.began
    broken = [name for name, number in row.items() if not np.isfinite(number)]
    if broken:
        raise FloatingPointError(
            f"{broken[0]} is not finite after iteration {done}, because the policy's actions are not, or the physics "
            "under them is not; the last snapshot is from before. Try a lower learning rate"
        )
    run.report.record(row)
    return row


def initial_state(config: TrainConfig, env: GoalEnv) -> TrainerState:
    """The state that a run of `config` starts from."""
    key, params_key, robots_key = jax.random.split(jax.random.key(config.seed), 3)
    return TrainerState(
        learner=make_updater(config, env).init(init_policy(params_key, config.spec(env))),
        robots=jax.jit(functools.partial(rollout.start, env, environments=config.num_envs))(robots_key),
        replay=replay.empty(
            config.replay_capacity,
            unroll=config.unroll,
            environments=config.num_envs,
            state_dim=env.state_size,
            action_dim=env.action_size,
        ),
        key=key,
        iteration=jnp.int32(0),
    )


def compile_programs(config: TrainConfig, env: GoalEnv, state: TrainerState) -> Programs:
    """Compile the programs of a run, side by side, for states like `state`. A state passed in is used up."""
    updater = make_updater(config, env)

    def collect(state: TrainerState) -> TrainerState:
        key, collect_key = jax.random.split(state.key)
        robots, steps = rollout.collect(
            env,
            state.learner.params.actor,
            state.robots,
            key=collect_key,
            unroll=config.unroll,
            episode_length=config.episode_length,
            goal_redraw_probability=config.goal_redraw_probability,
            at_goal_redraw_probability=config.at_goal_redraw_probability,
        )
        return TrainerState(
            learner=state.learner,
            robots=robots,
            replay=replay.insert(state.replay, steps),
            key=key,
            iteration=state.iteration + 1,
        )

    def learn(state: TrainerState) -> tuple[TrainerState, dict[str, jax.Array]]:
        key, pairs_key, update_key = jax.random.split(state.key, 3)
        shape = (config.updates_per_unroll, config.batch_size)
        pairs = relabel.sample_pairs(pairs_key, state.replay, shape, discount=config.discount)

        def one_update(learner: Learner, xs: tuple[relabel.Pairs, jax.Array]) -> tuple[Learner, dict[str, jax.Array]]:
            pairs, noise_key = xs
            return updater.update(learner, relabel.gather(state.replay, pairs), key=noise_key)

        update_keys = jax.random.split(update_key, config.updates_per_unroll)
        learner, metrics = jax.lax.scan(one_update, state.learner, (pairs, update_keys))
        return state._replace(learner=learner, key=key), metrics

    evaluation = functools.partial(
        evaluate.evaluate,
        evaluate.environment(config, env),
        episodes=config.eval_episodes,
        episode_length=config.episode_length,
    )
    lowered = (
        jax.jit(collect, donate_argnums=0).lower(state),
        jax.jit(learn, donate_argnums=0).lower(state),
        jax.jit(evaluation).lower(state.learner.params.actor, key=evaluate.evaluation_key(config.seed, 0)),
    )
    pool = ThreadPoolExecutor(len(lowered))
    try:
        return Programs(*pool.map(lambda program: program.compile(), lowered))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupt does not wait for the compiler


def _run_epoch(run: _Run, state: TrainerState) -> tuple[TrainerState, dict[str, float], int]:
    """Iterate until the next evaluation is due, time is up or a signal came; return the losses averaged over it."""
    config = run.config
    done, held = int(state.iteration), int(state.replay.held)
    until = min(config.iterations, (done // config.iterations_per_epoch + 1) * config.iterations_per_epoch)
    rows: list[dict[str, np.ndarray]] = []
    while done < until and not run.stop.is_set() and not (rows and run.out_of_time):
        state = run.programs.collect(state)
        if held >= config.replay_min:
            state, metrics = run.programs.learn(state)
            rows.append({name: np.asarray(numbers) for name, numbers in metrics.items()})
            run.env.require_no_overflow(run.env.overflow(state.robots.env))
            _require_finite(rows[-1], iteration=done, config=config)
        held = min(held + config.unroll, config.replay_capacity)
        done += 1
        run.report.advance("training", done=done, of=config.iterations)
    run.env.require_no_overflow(run.env.overflow(state.robots.env))
    _require_finite_parameters(jax.block_until_ready(state))  # also waits for what only fills the replay
    averages = {name: float(np.mean([row[name] for row in rows])) for name in (rows[0] if rows else {})}
    return state, averages, done


def _evaluation_due(config: TrainConfig, done: int) -> bool:
    """Whether `done` iterations end an epoch."""
    return done >= config.iterations or (done > 0 and done % config.iterations_per_epoch == 0)


@contextlib.contextmanager
def _stop_signals() -> Generator[threading.Event]:
    """Turn SIGTERM and SIGINT into a flag; a second SIGINT interrupts at once. Only the main thread may do so."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    earlier = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _to_save(config: TrainConfig, state: TrainerState) -> TrainerState:
    """What goes into a snapshot."""
    return state if config.snapshot_replay == "on" else state._replace(replay=None)  # pyright: ignore[reportArgumentType]


def _restore(config: TrainConfig, fresh: TrainerState) -> TrainerState:
    """The last snapshot, with the fresh, empty replay where it holds none; the start, if none was saved yet."""
    folder, published = config.out / "snapshots", bundle.versions(config.out / "policies")
    if not published and not snapshot.any_saved(folder):
        return fresh
    restored = snapshot.restore_latest(folder, like=_to_save(config, fresh))
    reached = int(restored.iteration) * config.steps_per_iteration
    if config.snapshot_replay == "off" and any(version > reached for version in published):
        raise snapshot.SnapshotError(
            f"{config.out} has published step {published[-1]} and its last snapshot is of step {reached}, from which a "
            "run without its replay goes on another way; move the later policies out, or start anew with --overwrite"
        )
    return restored if config.snapshot_replay == "on" else restored._replace(replay=fresh.replay)


def require_device(config: TrainConfig) -> None:
    """Refuse what the device at hand is no good for, unless it is asked for.

    Raises:
        ConfigError: bf16 on a CPU.
    """
    if config.precision == "bf16" and jax.default_backend() == "cpu" and not config.bf16_on_cpu:
        raise ConfigError(
            "precision bf16 is slower than f32 on a CPU, which has no units for it; use f32, or --bf16-on-cpu to try"
        )


def make_updater(config: TrainConfig, env: GoalEnv) -> Updater:
    """The gradient step that `config` describes."""
    return Updater(
        achieved_goal=env.achieved_goal,
        actor_learning_rate=config.actor_learning_rate,
        critic_learning_rate=config.critic_learning_rate,
        temperature_learning_rate=config.temperature_learning_rate,
        target_entropy=config.target_entropy_per_action * env.action_size,
        critic_loss=losses.CRITIC_LOSSES[config.critic_loss],
        energy=ENERGIES[config.energy],
        logsumexp_penalty=config.logsumexp_penalty,
        execution=Execution(precision=config.precision, remat=config.remat),
    )


def _require_finite(metrics: dict[str, np.ndarray], *, iteration: int, config: TrainConfig) -> None:
    """Every metric has one value per gradient step of the iteration."""
    first = {name: int(np.argmin(np.isfinite(numbers))) for name, numbers in metrics.items()}
    broken = {name: step for name, step in first.items() if not np.isfinite(metrics[name][step])}
    if broken:
        name = min(broken, key=lambda name: broken[name])
        raise FloatingPointError(
            f"{name} is not finite in gradient step {broken[name] + 1} of {config.updates_per_unroll} of iteration "
            f"{iteration + 1}; the last snapshot is from before. Try a lower learning rate"
        )


def _require_finite_parameters(state: TrainerState) -> None:
    """The losses of the last gradient step say nothing of the parameters after it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.learner.params):
        if not np.isfinite(np.asarray(leaf)).all():
            raise FloatingPointError(
                f"{jax.tree_util.keystr(path, simple=True, separator='.')} is not finite after iteration "
                f"{int(state.iteration)}; the last snapshot is from before. Try a lower learning rate"
            )
