"""The policy that a command line names: DIR is a published version, or a folder of versions."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from policy import published
from training.policy_command.result import CommandError

if TYPE_CHECKING:
    from policy import LoadedPolicy
    from policy.bundle import Bundle


def add_arguments(parser: argparse.ArgumentParser, *, without_version: str = "the newest") -> None:
    """Add DIR and --version, which `chosen` reads.

    Args:
        without_version: which versions of a folder the command takes if --version is not given, for the help.
    """
    parser.add_argument("folder", metavar="DIR", type=Path, help="a published version, or a folder of versions")
    parser.add_argument(
        "--version", type=int, metavar="N", help=f"of a folder of versions: this one (default: {without_version})"
    )


def chosen(arguments: argparse.Namespace) -> Path:
    """Return the folder of the version that `add_arguments` has read, unverified.

    Raises:
        MissingVersionError: there is no such version.
    """
    return published.find(arguments.folder, arguments.version)


def read(path: Path) -> "Bundle":
    """Verify and load a published version. This imports JAX, which takes seconds.

    Raises:
        CommandError: the version is damaged, or JAX has no device.
        OSError: a file cannot be read.
    """
    start_jax()
    return read_started(path)


def start_jax() -> None:
    """Set JAX up, and print its warnings. This imports JAX, which takes seconds.

    Raises:
        CommandError: JAX has no device.
    """
    from policy import jax_settings

    if warning := jax_settings.apply():
        print(f"warning: {warning}", file=sys.stderr)
    if problem := jax_settings.device_problem():
        raise CommandError(problem)


def read_started(path: Path) -> "Bundle":
    """Verify and load a published version after `start_jax`.

    Raises:
        CommandError: the version is damaged.
        OSError: a file cannot be read.
    """
    from policy import bundle

    try:
        return bundle.read(path)
    except bundle.BundleError as error:
        raise CommandError(str(error)) from error


def load(path: Path) -> "LoadedPolicy":
    """Verify a published version, and return it ready to act.

    Raises:
        CommandError, OSError: as `read`.
    """
    verified = read(path)
    from policy import LoadedPolicy

    return LoadedPolicy(verified)
