"""Command line of training: flags and a preset make a TrainConfig, the loop does the rest."""

import argparse
import importlib
import os
import sys
from pathlib import Path

import rich.console
import rich.table
import tyro

from policy.spec import SpecError
from training.config import PRESETS, ConfigError, TrainConfig, preset_config
from training.envs.mazes import LayoutError
from training.envs.physics import PhysicsOverflowError
from training.envs.registry import ENVIRONMENTS, EnvError, UnknownNameError, bare_name, find, import_module_of, make

_DESCRIPTION = f"""Train a goal-reaching policy with contrastive RL on MuJoCo MJX, and publish it for serving.

  python training/run.py --env point_u_maze --out runs/demo

Both flags are needed. Environments: {", ".join(ENVIRONMENTS)}; --list-envs shows their sizes.
For a robot of your own see docs/your-own-robot.md.

Presets: {", ".join(PRESETS)}. The environment's own is taken, or paper where it has none, unless
--preset names another; every other flag changes one of its values. The defaults below are those
for the --env and --preset given beside --help.
"""
_FALLBACK_ENV = "point_u_maze"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if "--list-envs" in arguments:
            return _list(arguments)
        config = parse(arguments)
    except (ConfigError, EnvError, SpecError, UnknownNameError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import jax

    from training import (
        loop,
        memory,
        report,
        run_folder,
        snapshot,
    )  # after the flags are known to be right: the loop is slow to import

    try:
        trainer = loop if config.algorithm == "crl" else importlib.import_module("training.baselines")
        trainer.train(config, console=rich.console.Console())
    except KeyboardInterrupt:
        saved = (config.out / "snapshots").is_dir() and any((config.out / "snapshots").iterdir())
        advice = "the same command with --resume continues" if saved else "nothing was saved yet; use --overwrite"
        print(f"\ninterrupted; {advice}", file=sys.stderr, flush=True)
        os._exit(130)  # without waiting for the compiler's threads, which nothing can interrupt
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            f"error: the device is out of memory; {memory.advice(config, loop.registry.make(config.env))}",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(f"error: {error}; check the disk and the folder, or give another --out", file=sys.stderr)
        return 1
    except (
        ConfigError,
        EnvError,
        FloatingPointError,
        ImportError,
        LayoutError,
        MemoryError,
        PhysicsOverflowError,
        SpecError,
        run_folder.OutputFolderError,
        report.MetricsError,
        snapshot.SnapshotError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _list(arguments: list[str]) -> int:
    """List the environments, whatever is wrong with the user's own, and say what that is; return the exit code."""
    failed: list[str] = []
    try:
        import_module_of(_chosen(arguments).env or "")
    except (EnvError, SpecError) as error:
        failed.append(str(error))
    failed += list_environments(rich.console.Console())
    for failure in failed:
        print(f"error: {failure}", file=sys.stderr)
    return 2 if failed else 0


def list_environments(console: rich.console.Console) -> list[str]:
    """Print a table of every environment with its sizes, its control period and its success radius.

    Returns:
        What is wrong with those that cannot be built, one line each.
    """
    table = rich.table.Table("environment", "state", "goal", "action", "period", "radius", "episode")
    table.columns[0].no_wrap = True
    table.caption = "state, goal and action in values, the control period, the success radius, an episode's steps"
    for column in table.columns[1:]:
        column.justify = "right"
    failed: list[str] = []
    for name in ENVIRONMENTS:
        try:
            env = make(name)
        except (EnvError, SpecError) as error:
            failed.append(f"{name} is not listed: {error}")
            continue
        sizes = (str(size) for size in (env.state_size, env.goal_size, env.action_size))
        period, radius = f"{env.control_period_s:g} s", f"{env.facts.success_radius:g} m"
        table.add_row(name, *sizes, period, radius, f"{env.facts.episode_length}")
    console.print(table)
    return failed


def parse(arguments: list[str]) -> TrainConfig:
    """Flags to configuration: first what the preset is, then what the flags change of it.

    Raises:
        ConfigError, EnvError, SpecError, UnknownNameError: a flag's value cannot work.
        SystemExit: a flag that is not known, or --help.
    """
    chosen = _chosen(arguments)
    asks_for_help = "--help" in arguments or "-h" in arguments
    if not asks_for_help:
        if not chosen.env:
            raise ConfigError(f"--env is needed, for example --env {_FALLBACK_ENV}; --list-envs shows all")
        if chosen.out is None:
            raise ConfigError(f"--out is needed, a folder for the run; for example --out runs/{bare_name(chosen.env)}")
        if chosen.eval_env:
            find(chosen.eval_env)
    env = chosen.env or _FALLBACK_ENV
    defaults = preset_config(env, out=chosen.out or Path("runs") / bare_name(env), preset=chosen.preset)
    return tyro.cli(
        TrainConfig,
        default=defaults,
        args=arguments,
        prog="python training/run.py",
        description=_DESCRIPTION,
    )


def _chosen(arguments: list[str]) -> argparse.Namespace:
    """The flags that are looked at before all others are read; None where one is left out."""
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--env")
    chooser.add_argument("--eval-env", "--eval_env")
    chooser.add_argument("--preset")
    chooser.add_argument("--out", type=Path)
    return chooser.parse_known_args(arguments)[0]


if __name__ == "__main__":
    sys.exit(main())
