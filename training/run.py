"""The command line of training: turn flags and a preset into a TrainConfig, and train."""

import time

BEGAN = time.monotonic()  # before the other imports, which take seconds: --max-minutes counts from here

# ruff: noqa: E402
import contextlib
import sys
from pathlib import Path

from training import stop_signals

_SCRIPT = "kilolayer-train"
# Signals are handled before the other imports, but not in a program that imports this module.
_LISTENER = stop_signals.started(sys.argv[1:]) if __name__ == "__main__" or Path(sys.argv[0]).name == _SCRIPT else None

import argparse
import difflib
import os
import traceback
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NoReturn

import rich.console
import rich.table

from policy import command_line
from policy.command_line import PREFIX, SERVER_VARIABLES, local_path
from policy.spec import SpecError
from training import standard_output
from training.config import ConfigError, TrainConfig
from training.envs import registry
from training.envs.building.mazes import LayoutError
from training.envs.core.errors import EnvError, UnknownNameError
from training.envs.core.physics import PhysicsOverflowError
from training.presets.settings import PRESETS
from training.run_dir import config_file, snapshots

_FALLBACK_ENV = "point_u_maze"
_DRY_RUN, _LIST = "--dry-run", "--list-envs"  # no settings of a run, so config.json does not have them
_DESCRIBING = frozenset({"--help", "-h", _LIST, _DRY_RUN})  # flags that train nothing
_RESUME_VALUES = ("auto", "True", "False")


def command() -> NoReturn:
    """Run the command line and end the process.

    When a run ends, all its files are complete. The end of the interpreter would only take time: 10 to 15 s on two busy
    cores, where this takes 0.3 s. It could also wait for a terminal that takes no output.
    """
    with standard_output.tolerant(announce=_DESCRIBING.isdisjoint(sys.argv)):
        try:
            code = main()
        except SystemExit as ended:  # --help, or an unknown flag
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except Exception:  # the interpreter would print it, too
            traceback.print_exc()
            code = 1
    os._exit(code)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    announce = _DESCRIBING.isdisjoint(arguments)
    with standard_output.tolerant(announce=announce), _listening() as listener:
        try:
            listener.exit_code, arguments = stop_signals.take_exit_code(arguments)
            _require_usage(arguments, os.environ)
            if _LIST in arguments:
                return _list(arguments)
            if _DRY_RUN in arguments:
                return _describe(arguments)
            config = parse(arguments)
        except (ConfigError, EnvError, SpecError, UnknownNameError, stop_signals.ExitCodeError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return _train(config, listener)


@contextlib.contextmanager
def _listening() -> Generator[stop_signals.Listener]:
    """Listen to signals, unless the command does so already."""
    if _LISTENER:
        yield _LISTENER
        return
    with stop_signals.Listener() as listener:
        yield listener


def _require_usage(arguments: list[str], environ: Mapping[str, str]) -> None:
    """Refuse unknown flags, values of a wrong type, and variables that look like settings of training.

    Raises:
        ConfigError: naming the flag or the variable.
    """
    if command_line.asks_for_help(arguments):
        return
    words = _with_value_of_resume(arguments)
    if problem := command_line.usage_problem(words, TrainConfig, other_flags=(_DRY_RUN, _LIST)):
        raise ConfigError(problem)
    if name := command_line.unknown_variable(environ, SERVER_VARIABLES):
        options = command_line.options(TrainConfig).values()
        flags = {PREFIX + option.name.upper(): f"use a flag, did you mean {option.flag}?" for option in options}
        meant = {variable: f"did you mean the server's {variable}?" for variable in SERVER_VARIABLES} | flags
        (nearest,) = difflib.get_close_matches(name, meant, n=1, cutoff=0)
        raise ConfigError(
            f"{name} is not a setting: training reads no variables; {meant[nearest]} If the variable is of another "
            "program, unset it here"
        )


def ignored_variables(environ: Mapping[str, str]) -> str:
    """Return a line that names the variables that training does not read; empty if there are none."""
    names = [*sorted(SERVER_VARIABLES & environ.keys()), *command_line.foreign_variables(environ)]
    of_whom = "variables of the server, or of a Service of Kubernetes"
    return f"ignoring {', '.join(dict.fromkeys(names))}: {of_whom}" if names else ""


def _jax_problem() -> str:
    """Set what training relies on in JAX; return why JAX has no device, in one line; empty if it has one."""
    from policy import jax_settings

    if warning := jax_settings.apply():
        print(f"warning: {warning}", file=sys.stderr)
    return jax_settings.device_problem()


def _describe(arguments: list[str]) -> int:
    """Print what the command would do; return the exit code."""
    config = parse(arguments)
    if problem := _jax_problem():
        print(f"error: {problem}", file=sys.stderr)
        return 1
    from training import dry_run  # imported here, as in `_train`
    from training.run_dir.lock import RunDirError
    from training.run_dir.metrics_log import MetricsError

    is_folder_given = _early_flags(arguments).out is not None
    try:
        print("\n".join(dry_run.describe(config, is_folder_given=is_folder_given)))
    except (MetricsError, OSError, RunDirError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, RunDirError) else 1
    return 0


def _train(config: TrainConfig, listener: stop_signals.Listener) -> int:
    """Train, and turn expected errors into one line and an exit code."""
    listener.last_words = lambda: _without_saving(config)
    import jax

    if problem := _jax_problem():
        print(f"error: {problem}", file=sys.stderr)
        return 1
    from policy import compilation_cache
    from training import trainer  # imported here, because it takes seconds
    from training.budgets import memory_budget
    from training.divergence import DivergedError
    from training.progress_display import ConsoleProgress
    from training.run_dir.checkpoint import SnapshotError
    from training.run_dir.lock import FolderInUseError, RunDirError
    from training.run_dir.metrics_log import MetricsError

    console = rich.console.Console()
    progress = ConsoleProgress(console, began=BEGAN)
    listener.say, listener.before_end = progress.say, console.show_cursor
    try:
        with progress:
            if ignored := ignored_variables(os.environ):
                progress.say(ignored)
            if warning := compilation_cache.enable():
                progress.say(f"warning: {warning}")
            outcome = trainer.train(config, progress=progress, began=BEGAN, stop_requested=listener.saving)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        advice = memory_budget.advice(config, registry.make(config.env))
        print(f"error: the device is out of memory; {advice}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {describe_os_error(error, config)}", file=sys.stderr)
        return 1
    except (ConfigError, EnvError, LayoutError, RunDirError, SpecError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, FolderInUseError) else 2  # the others would be the same the next time
    except (
        DivergedError,
        FloatingPointError,
        ImportError,
        MemoryError,
        MetricsError,
        PhysicsOverflowError,
        SnapshotError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return listener.code_of(None) if outcome.stopped else 0


def describe_os_error(error: OSError, config: TrainConfig) -> str:
    """Return one line about a file that cannot be written or read: where it is, and what to try.

    The system names no file when a write, an fsync or a lock fails.
    """
    is_named = error.filename is not None or str(config.out) in str(error)
    where = "" if is_named else f" in {config.out}"
    has_advice = ";" in (error.strerror or "")  # a message of ours
    return f"{error}{where}{'' if has_advice else '; check the disk and the folder, or use another --out'}"


def _without_saving(config: TrainConfig) -> str:
    """Say how to go on after a signal that ended the process without saving."""
    if snapshots.iterations(config.out / "snapshots"):
        return f"ended without saving; continue from the last snapshot with {config.continuation}"
    again = config.continuation if config.resume == "auto" else "the same command with --overwrite"
    return f"ended; nothing was saved yet. Start again with {again}"


def _list(arguments: list[str]) -> int:
    """List the environments, then the errors of custom ones; return the exit code."""
    failed: list[str] = []
    try:
        registry.import_module_of(_early_flags(arguments).env or "")
    except (EnvError, SpecError) as error:
        failed.append(str(error))
    failed += list_environments(rich.console.Console())
    for failure in failed:
        print(f"error: {failure}", file=sys.stderr)
    return 2 if failed else 0


def list_environments(console: rich.console.Console) -> list[str]:
    """Print a table of every environment with its sizes, control period and success radius.

    Returns:
        One line for each environment that cannot be built, with the reason.
    """
    table = rich.table.Table("environment", "state", "goal", "action", "period", "radius", "episode")
    table.columns[0].no_wrap = True
    table.caption = "number of values of state, goal and action; control period; success radius; steps of an episode"
    for column in table.columns[1:]:
        column.justify = "right"
    failed: list[str] = []
    for name in registry.names():
        try:
            env = registry.make(name)
        except (EnvError, SpecError) as error:
            failed.append(f"{name} is not listed: {error}")
            continue
        sizes = (str(size) for size in (env.state_size, env.goal_size, env.action_size))
        period, radius = f"{env.control_period_s:g} s", f"{env.spec.success_radius:g} m"
        table.add_row(name, *sizes, period, radius, f"{env.spec.episode_length}")
    console.print(table)
    return failed


def parse(arguments: list[str]) -> TrainConfig:
    """Parse flags into a configuration: the preset's values, with those of the flags in their place.

    Raises:
        ConfigError, EnvError, SpecError, UnknownNameError: a flag's value is not valid.
        SystemExit: --help.
    """
    dry = _DRY_RUN in arguments
    arguments = _with_value_of_resume([argument for argument in arguments if argument != _DRY_RUN])
    early = _early_flags(arguments)
    program = _SCRIPT if Path(sys.argv[0]).name == _SCRIPT else "python training/run.py"
    needed = () if "--help" in arguments or "-h" in arguments else ("--env",) if dry else ("--env", "--out")
    defaults = _defaults(early, needed=needed)
    config = command_line.parse(
        TrainConfig, arguments, fail=ConfigError, default=defaults, prog=program, description=_description(program)
    )
    if config.resume:
        _require_same_run(config)
    return config


def _with_value_of_resume(arguments: list[str]) -> list[str]:
    """Write --resume as --resume=True and --no-resume as --resume=False, because tyro's choices need a value."""
    values = {"--resume": "--resume=True", "--no-resume": "--resume=False", "--no_resume": "--resume=False"}
    given: list[str] = []
    for argument in arguments:
        if argument in _RESUME_VALUES and given[-1:] == ["--resume=True"]:
            given[-1] = f"--resume={argument}"
        else:
            given.append(values.get(argument, argument))
    return given


def _require_same_run(config: TrainConfig) -> None:
    """Refuse flags that must not change on a resume, before the slow imports. The run itself checks again."""
    try:  # with auto there may be no run
        stored = config_file.read(config.out)
    except (OSError, config_file.ConfigFileError):
        return  # the run says what is wrong with its folder
    config_file.require_same_run(stored, config)


def _defaults(early: argparse.Namespace, *, needed: Sequence[str]) -> TrainConfig:
    """Return the values of all flags that are not on the command line, of which `needed` must be."""
    resumes = early.resume == "True" or (early.resume == "auto" and _has_run(early.out))
    if resumes and early.out is not None and needed:
        try:
            stored = config_file.to_resume(early.out)
        except config_file.ConfigFileError as error:
            if not early.env:  # with an environment, the run itself says what is wrong with the folder
                raise ConfigError(str(error)) from error
        else:
            if early.preset in {None, stored.preset}:
                return stored
            early.env = early.env or stored.env
    _require_flags(early, needed)
    env = early.env or _FALLBACK_ENV
    given: dict[str, Any] = {} if early.out is None else {"out": early.out}
    return TrainConfig(env=env, preset=early.preset or "", **given)


def _has_run(out: Path | None) -> bool:
    """Return whether there is a run in the folder that --resume auto must continue."""
    return out is not None and (out / config_file.NAME).exists()


def _require_flags(early: argparse.Namespace, needed: Sequence[str]) -> None:
    """Refuse a command line without the flags in `needed`, all in one line."""
    given = {"--env": early.env, "--out": early.out}
    missing = [flag for flag in needed if not given[flag]]
    if missing:
        env = early.env or _FALLBACK_ENV
        examples = {"--env": f"--env {env}", "--out": f"--out runs/{registry.bare_name(env)}"}
        names = "; --list-envs shows all environments" if "--env" in missing else ""
        raise ConfigError(
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} required: for example "
            f"{' '.join(examples[flag] for flag in missing)}{names}"
        )
    if early.eval_env and needed:
        registry.find(early.eval_env)


def _description(program: str) -> str:
    return f"""Train a goal-reaching policy with contrastive RL on MuJoCo MJX, and publish it for serving.

  {program} --env point_u_maze --out runs/first

--env and --out are required; with --resume, only --out. --resume auto begins the run or continues it, so that a cluster
can start the same command again. A run that SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2 stops exits with code
{stop_signals.STOPPED_EXIT_CODE}, or with that of --stopped-exit-code. Environments: {", ".join(registry.names())}.
--list-envs shows their sizes. For a robot of your own see docs/your-own-robot.md.
--dry-run prints what the command would do and the published figure to compare it with. It trains nothing.

Presets: {", ".join(PRESETS)}. Without --preset, the preset with the environment's name is used, or
paper if there is none. The other flags override single values of the preset. The defaults below are
those of the --env and --preset on this command line.
"""


def _early_flags(arguments: list[str]) -> argparse.Namespace:
    """Return the flags that decide the defaults of all others; None where one is absent."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--env")
    parser.add_argument("--eval-env", "--eval_env")
    parser.add_argument("--preset")
    parser.add_argument("--out", type=_folder)
    parser.add_argument("--resume")
    return parser.parse_known_args(arguments)[0]


def _folder(text: str) -> Path:
    try:
        return local_path(Path(text), name="--out")
    except ValueError as error:
        raise ConfigError(str(error)) from error


if __name__ == "__main__":
    command()
