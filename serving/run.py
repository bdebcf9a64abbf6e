"""The command line of the server: flags and environment variables become a ServeConfig; the result is an exit code.

    python serving/run.py --policies runs/first/policies --listen 127.0.0.1:50051 --metrics-port 9464

Exit codes: 0 after a clean stop; 1 if the server cannot start, can no longer compute, or left a call unanswered; 2 for
wrong usage.
"""

import dataclasses
import difflib
import gc
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import tyro

from serving.config import ConfigError, ServeConfig, flag
from serving.errors import StartupError, shortage
from serving.sockets import raise_descriptor_limit
from serving.telemetry.logs import log_to_stderr
from serving.workers.shutdown import on_stop_signals

_LOGGER = logging.getLogger("kilolayer")
_PREFIX = "KILOLAYER_"
_ENOUGH_ADDRESS_SPACE = 4 * 2**30  # bytes; about 1.8 GiB are needed on two cores, and more on more
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
# Kubernetes sets such variables in every pod for each Service whose name is "kilolayer" or begins with "kilolayer-".
_SERVICE_LINK = re.compile(
    r"KILOLAYER_(\w+_)?(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=.*|PORT_\d+_[A-Z]+(_\w+)?=.*|PORT=[a-z]+://.*)"
)


def main() -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code."""
    _open_standard_streams()
    log_to_stderr("auto")  # until the configuration says which format
    # gRPC's own log lines repeat what our errors say, less clearly. gRPC reads this when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Only the supervisor may set these, for its workers. A program that starts this one may have set them for itself.
    for variable in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        os.environ.pop(variable, None)
    try:
        config = parse(sys.argv[1:], os.environ)
    except ConfigError as error:
        _LOGGER.error("%s", error)
        return 2
    log_to_stderr(config.log_format)
    return _serve(config)


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> ServeConfig:
    """Read the configuration from `arguments`, and from `environ` for flags that are not given.

    Raises:
        ConfigError: a value is not allowed, or a KILOLAYER_ variable is unknown.
        SystemExit: --help, or a flag that does not exist or cannot be read; the message has been printed.
    """
    fields = {_PREFIX + field.name.upper(): field for field in dataclasses.fields(ServeConfig)}
    _check_names(environ, known=fields)
    # If a flag is given twice, the last one counts; so the variables come first, as flags.
    from_environ = [word for variable, field in fields.items() for word in _flag_words(variable, field, environ)]
    prog = "kilolayer-serve" if Path(sys.argv[0]).stem == "kilolayer-serve" else "python serving/run.py"
    return tyro.cli(ServeConfig, args=[*from_environ, *arguments], prog=prog)


def _check_names(environ: Mapping[str, str], *, known: Mapping[str, object]) -> None:
    for variable, value in environ.items():
        if not variable.startswith(_PREFIX) or variable in known or _SERVICE_LINK.fullmatch(f"{variable}={value}"):
            continue
        (nearest,) = difflib.get_close_matches(variable, known, n=1, cutoff=0)
        raise ConfigError(f"{variable} is not a setting of the server; did you mean {nearest}? --help lists all flags")


def _flag_words(variable: str, field: "dataclasses.Field[object]", environ: Mapping[str, str]) -> list[str]:
    """Return the flag that `variable` sets, as words of a command line; none if the variable is unset or empty."""
    value = environ.get(variable, "")
    if not value:
        return []
    if field.type is bool:
        if value.lower() not in _BOOLEANS:
            raise ConfigError(f"{variable} must be true or false, got {value!r}")
        return [flag(field.name) if _BOOLEANS[value.lower()] else flag("no_" + field.name)]
    if field.type in (int, float):
        try:
            field.type(value)
        except ValueError as error:
            kind = "an integer" if field.type is int else "a number"
            raise ConfigError(f"{variable} must be {kind}, such as {field.default}, got {value!r}") from error
    parts = {"policies": -1, "log_rows": 1}.get(field.name, 0)  # where to split: at every colon, at the first, nowhere
    return [flag(field.name), *(value.split(os.pathsep, parts) if parts else [value])]


def _serve(config: ServeConfig) -> int:
    raise_descriptor_limit()
    # Until an event loop handles them.
    on_stop_signals(lambda number, handler: signal.signal(number, lambda *_: handler()), _exit)
    if config.log_rows and not _can_write(config.log_rows[1]):  # or each worker would report it
        return 1
    _warn_of_little_address_space()
    try:
        # Imported here, because importing JAX takes seconds: --help and wrong flags need no JAX.
        if config.workers > 1:
            from serving.workers.supervisor import supervise

            return supervise(config)
        gc.disable()  # until everything is compiled: collections would take about 15 % of the start
        from serving.workers.worker import run_alone
    except (ImportError, MemoryError, OSError) as error:
        _LOGGER.error("cannot import the libraries that serving needs: %s", shortage(error) or error)
        return 1
    return run_alone(config)


def _can_write(folder: Path) -> bool:
    """Return whether sampled rows can be written to `folder`. Otherwise the log says why."""
    from serving.telemetry.row_files import check_folder

    try:
        check_folder(folder)
    except StartupError as error:
        _LOGGER.error("%s", error)
        return False
    return True


def _warn_of_little_address_space() -> None:
    """Warn if the address space is so limited that native libraries may abort, which they do without an explanation."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _ENOUGH_ADDRESS_SPACE:
        _LOGGER.warning(
            "the address space is limited to %.1f GiB (ulimit -v); the server may abort below %.0f GiB, because"
            " libraries cannot start their threads",
            limit / 2**30,
            _ENOUGH_ADDRESS_SPACE / 2**30,
        )


def _open_standard_streams() -> None:
    """Connect descriptors 0 to 2 to nothing if they are closed. Otherwise a socket could get their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number


def _exit() -> None:
    _LOGGER.info("stopped before any policy was loaded")
    os._exit(0)  # an exception could be caught by the import that is running


if __name__ == "__main__":
    sys.exit(main())
