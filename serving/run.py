"""The command line of the server: flags and environment variables to a ServeConfig, and out again with an exit code.

    python serving/run.py --policies runs/demo/policies --port 50051 --metrics-port 9464

Exit codes: 0 after a clean stop, 1 if the server cannot start or a call was left unanswered, 2 for wrong usage.
"""

import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence

import tyro

from serving.config import ConfigError, ServeConfig
from serving.telemetry.logs import log_to_stderr

_LOGGER = logging.getLogger("kilolayer")
_PREFIX = "KILOLAYER_"
_SWITCHES = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def main() -> int:
    """Serve until told to stop, and return the exit code."""
    log_to_stderr("auto")  # until the configuration says which format
    # gRPC's own lines repeat what our errors say, in less helpful words. It reads this when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Where a program that started us counts is its own affair; `serving.workers.supervisor` names our workers a folder.
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
    """Read `arguments` and, for what they leave out, `environ`.

    Raises:
        ConfigError: a value is not valid.
        SystemExit: --help, or a flag that does not exist or cannot be read; the text has been printed.
    """
    # Of a flag given twice the last counts, so the variables come first, as flags.
    from_environ = [word for field in dataclasses.fields(ServeConfig) for word in _flag(field, environ)]
    return tyro.cli(ServeConfig, args=[*from_environ, *arguments], prog="python serving/run.py")


def _flag(field: "dataclasses.Field[object]", environ: Mapping[str, str]) -> list[str]:
    """The flag that a variable stands for, as words of a command line; none if it is unset or empty."""
    variable = _PREFIX + field.name.upper()
    value = environ.get(variable, "")
    if not value:
        return []
    flag = "--" + field.name.replace("_", "-")
    if field.type is bool:
        if value.lower() not in _SWITCHES:
            raise ConfigError(f"{variable} must be true or false, not {value!r}")
        return [flag if _SWITCHES[value.lower()] else flag.replace("--", "--no-")]
    if field.type in (int, float):
        try:
            field.type(value)
        except ValueError as error:
            raise ConfigError(f"{variable} must be a number, such as {field.default}, not {value!r}") from error
    return [flag, *(value.split(os.pathsep) if field.name == "policies" else [value])]


def _serve(config: ServeConfig) -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)  # until there is an event loop that hears them
    # Loading JAX takes seconds, which --help and mistaken flags should not cost.
    if config.workers > 1:
        from serving.workers.supervisor import supervise

        return supervise(config)
    from serving.workers.worker import run_alone

    return run_alone(config)


def _leave(_number: int, _frame: object) -> None:
    _LOGGER.info("stopped before anything was loaded")
    os._exit(0)  # what is being imported may turn an exception into another


if __name__ == "__main__":
    sys.exit(main())
