"""kilolayer-policy: show, check and compare published policies, and exchange them with other programs.

    kilolayer-policy show runs/first/policies
    kilolayer-policy verify runs/first/policies/2000 --json

A subcommand is a module of this package. To add one, write a module with these three names, and add it to `_COMMANDS`:

    HELP                        what it does, in a few words
    add_arguments(parser)       adds its arguments
    run(arguments) -> Result    does it

Import what is slow, such as JAX, in `run`, because --help imports every subcommand. `folders` chooses and reads the
policy that DIR names.

Exit codes: 0 when it is done; 1 if a policy is damaged or the work failed; 2 for wrong usage. `diff` has a code of its
own for a difference. An error is one line on standard error, and standard output stays empty, with --json too.
"""

import argparse
import contextlib
import json
import math
import signal
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

try:
    from policy.published import MissingVersionError
    from training.policy_command import diff, evaluating, export, import_policy, output, show, verify
    from training.policy_command.output import OutputError
    from training.policy_command.result import CommandError, Result, UsageError
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    sys.exit(f"error: {error}: run make install and use .venv/bin/python, or install with pip install -e .")

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

_INSTALL = "pip install -e '.[train,export]'"


class Subcommand(Protocol):
    """A module of this package that does one thing."""

    @property
    def HELP(self) -> str:  # noqa: N802
        """What it does, in a few words without a full stop."""
        ...

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments to the parser of the subcommand. It has --json already."""
        ...

    def run(self, arguments: argparse.Namespace) -> Result:
        """Do it.

        Raises:
            UsageError, MissingVersionError: exit code 2.
            CommandError, OSError: exit code 1.
            ImportError: an extra is not installed, or broken; exit code 1.
        """
        ...


_COMMANDS: Mapping[str, Subcommand] = MappingProxyType(
    {
        "show": show,
        "verify": verify,
        "diff": diff,
        "export": export,
        "import": import_policy,
        "evaluate": evaluating,
    }
)


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: "SupportsWrite[str] | None" = None) -> None:
        """Print the help; on standard output completely, or raise OutputError."""
        if file is None:
            output.write(self.format_help())
        else:
            super().print_help(file)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {self.prog} --help describes the usage")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. `arguments` default to those of the process."""
    try:
        parsed = parse(sys.argv[1:] if arguments is None else arguments)
        with _sigterm_as_ctrl_c():
            result = parsed.subcommand.run(parsed)
        text = json.dumps(_finite(result.facts)) if parsed.json else _printable("\n".join(result.lines))
        output.write(f"{text}\n")
    except (UsageError, MissingVersionError) as error:
        return _fail(str(error), 2)
    except ImportError as error:
        return _fail(_of_import(error), 1)
    except OSError as error:
        return _fail(_of_system(error), 1)
    except (CommandError, OutputError) as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("stopped", 1)
    return result.exit_code


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Generator[None]:
    """Let SIGTERM end the command as Ctrl-C does, so that unfinished folders are removed."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals there only
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _stop(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the removal
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = _Parser(
        prog="kilolayer-policy",
        description="Show, check and compare published policies, and exchange them with other programs.",
        epilog="kilolayer-policy COMMAND --help describes a command.",
        allow_abbrev=False,
    )
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, subcommand in _COMMANDS.items():
        own = commands.add_parser(
            name, help=subcommand.HELP, description=_sentence(subcommand.HELP), allow_abbrev=False
        )
        own.set_defaults(subcommand=subcommand)
        subcommand.add_arguments(own)
        own.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return made


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; `subcommand` is the module that runs it.

    Raises:
        UsageError: an argument is missing, unknown or not allowed.
    """
    return parser().parse_args(arguments)


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]  # None if the descriptor is closed
            print(f"error: {_printable(' '.join(message.splitlines()))}", file=sys.stderr)
    return code


def _of_import(error: ImportError) -> str:
    """Say which library is missing, or cannot be imported."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error}: install with {_INSTALL}"
    library = f"the library {error.name}" if error.name else "a library"
    return f"{library} cannot be imported: {error}; install it again, or all with {_INSTALL}"


def _of_system(error: OSError) -> str:
    """Say what the system refused, without the number of the error."""
    if error.filename is None or not error.strerror:
        return str(error)
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} does not exist"
    return f"{error.filename}: {error.strerror}"


def _finite(value: Any) -> Any:
    """Return a JSON value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _printable(text: str) -> str:
    """Return `text` without characters that a terminal takes as commands: names of files are in it."""
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


if __name__ == "__main__":
    sys.exit(main())
