"""The program of the server: what it needs of the machine is checked, then it serves; the result is an exit code.

    python serving/run.py --policies runs/first/policies --listen 127.0.0.1:50051 --metrics-port 9464

Exit codes: 0 after a clean stop; 1 if the server cannot start, can no longer compute, or left a call unanswered; 2 for
wrong usage.

This module imports little at its top, so that signals are handled and resources are checked before the slow imports.
"""

import functools
import gc
import logging
import os
import re
import resource
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from serving.config import LogFormat, ServeConfig
    from serving.sockets import Address

_LOGGER = logging.getLogger("kilolayer")
_LEAST_DESCRIPTORS = 128  # 48 are a reserve, and libraries and files need some dozens
_LEAST_ADDRESS_SPACE = 3 * 2**29  # bytes; with less, libraries abort or crash on every machine
_ENOUGH_ADDRESS_SPACE = 4 * 2**30  # bytes; about 1.8 GiB are needed on two cores, and more on more
_CANNOT_IMPORT = (ImportError, MemoryError, OSError)


def main() -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code."""
    early = _collect_signals()
    _open_standard_streams()
    try:
        from serving.sockets import raise_descriptor_limit
        from serving.telemetry.logs import log_to_stderr
        from serving.workers.shutdown import on_stop_signals
    except _CANNOT_IMPORT as error:
        print(f"error: cannot import the libraries that serving needs: {error}{_advice(error)}", file=sys.stderr)
        return 1
    log_to_stderr(_early_log_format())  # until the configuration is read
    # Until an event loop handles them.
    on_stop_signals(lambda number, handler: signal.signal(number, lambda *_: handler()), _exit)
    for number in early:
        signal.raise_signal(number)
    raise_descriptor_limit()
    if lacking := too_small_limit():
        _LOGGER.error("%s", lacking)
        return 1
    _prepare_environment()
    return _configure_and_serve()


def _configure_and_serve() -> int:
    try:
        from policy.command_line import foreign_variables
        from serving.command_line import client_variable_warnings, parse
        from serving.config import ConfigError
        from serving.telemetry.logs import log_to_stderr
    except _CANNOT_IMPORT as error:
        return _cannot_import(error)
    try:
        config = parse(sys.argv[1:], os.environ)
    except ConfigError as error:
        _LOGGER.error("%s", error)
        return 2
    log_to_stderr(config.log_format)
    if foreign := foreign_variables(os.environ):
        _LOGGER.info("ignoring variables that Kubernetes sets for a Service: %s", ", ".join(foreign))
    for warning in client_variable_warnings(config, os.environ):
        _LOGGER.warning("%s", warning)
    # Each worker would report these.
    if not _has_locks(config) or (config.log_rows and not _can_write(config.log_rows[1])):
        return 1
    return _serve(config, functools.partial(parse, sys.argv[1:], os.environ))


def _collect_signals() -> list[int]:
    """Return a list that receives the stop signals that arrive during the first imports."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: received.append(number))
    return received


def _early_log_format() -> "LogFormat":
    """Return the format that the last --log-format or the variable asks for, or auto, without checking the others."""
    asked: LogFormat = "auto"
    words = "\n".join(["", f"--log-format={os.environ.get('KILOLAYER_LOG_FORMAT', '')}", *sys.argv[1:], ""])
    for found in re.findall(r"\n--log[-_]format[\n=](auto|json|text)(?=\n)", words):
        asked = found
    return asked


def _open_standard_streams() -> None:
    """Connect descriptors 0 to 2 to nothing if they are closed. Otherwise a socket could get their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest free number


def too_small_limit() -> str:
    """Return which limit of this process is too small to start, with what is needed; empty if none is.

    Warns of an address space in which native libraries may abort, which they do without an explanation.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors != resource.RLIM_INFINITY and descriptors < _LEAST_DESCRIPTORS:
        return (
            f"only {descriptors} file descriptors are allowed (ulimit -n), and the server needs"
            f" {_LEAST_DESCRIPTORS}; raise the limit"
        )
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY and space < _LEAST_ADDRESS_SPACE:
        return (
            f"the address space is limited to {space / 2**30:.1f} GiB (ulimit -v), which is too little for the"
            f" libraries; allow {_ENOUGH_ADDRESS_SPACE / 2**30:.0f} GiB"
        )
    if space != resource.RLIM_INFINITY and space < _ENOUGH_ADDRESS_SPACE:
        _LOGGER.warning(
            "the address space is limited to %.1f GiB (ulimit -v); the server may abort below %.0f GiB, because"
            " libraries cannot start their threads",
            space / 2**30,
            _ENOUGH_ADDRESS_SPACE / 2**30,
        )
    return ""


def _prepare_environment() -> None:
    # Only the supervisor may set these, for its workers. A program that starts this one may have set them for itself.
    for variable in ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"):
        os.environ.pop(variable, None)


def _serve(config: "ServeConfig", read: "Callable[[], ServeConfig]") -> int:
    if config.tls:
        from serving.access import handshakes

        handshakes.prepare()
    # gRPC's own log lines repeat what our errors say, less clearly. gRPC reads this when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        # Imported here, because importing JAX takes seconds: --help and wrong flags need no JAX.
        if config.workers > 1:
            from serving.workers.supervisor import supervise as serve
        else:
            gc.disable()  # until everything is compiled: collections would take about 15 % of the start
            from serving.workers.worker import run_alone as serve
    except _CANNOT_IMPORT as error:
        return _cannot_import(error)
    return serve(config, read)


def _cannot_import(error: BaseException) -> int:
    """Log why a library cannot be imported, and return the exit code."""
    from serving.errors import shortage

    _LOGGER.error("cannot import the libraries that serving needs: %s%s", shortage(error) or error, _advice(error))
    return 1


def _advice(error: BaseException) -> str:
    """Return how a library is installed, if it is not; otherwise nothing."""
    if not isinstance(error, ModuleNotFoundError):
        return ""
    return ": run make install and use .venv/bin/python, or install with pip install -e clients/python -e '.[serve]'"


def _can_write(folder: "Path") -> bool:
    """Return whether sampled rows can be written to `folder`. Otherwise the log says why."""
    from serving.errors import StartupError
    from serving.telemetry.row_files import check_folder

    try:
        check_folder(folder)
    except StartupError as error:
        _LOGGER.error("%s", error)
        return False
    return True


def _has_locks(config: "ServeConfig") -> bool:
    """Return whether the locks that the addresses need are there and can be used. Otherwise the log says why."""
    from serving.errors import StartupError
    from serving.lock_settings import require_locks

    try:
        addresses: dict[str, Address] = {"--listen": config.address}
        if config.http_address:
            addresses["--http-port"] = config.http_address
        warnings = require_locks(config, addresses)
        if config.tls:
            from serving.access.tls import Certificates

            warnings += Certificates(config.tls).warnings()
        if config.tokens:
            from serving.access import token_file

            warnings += token_file.warnings(config.tokens)
    except StartupError as error:
        _LOGGER.error("%s", error)
        return False
    for warning in warnings:
        _LOGGER.warning("%s", warning)
    return True


def _exit() -> None:
    _LOGGER.info("stopped before any policy was loaded")
    logging.shutdown()  # writes the line
    os._exit(0)  # an exception could be caught by the import that is running


if __name__ == "__main__":
    sys.exit(main())
