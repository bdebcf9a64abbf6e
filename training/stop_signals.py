"""Signals that end a run. It saves its state and stops; while it has nothing to save, the process ends immediately.

Python runs a signal's handler in the main thread, between two instructions. A compiled program or the compiler is one
instruction that may take minutes. So the command has a `Listener`: a thread that reads the numbers of signals from a
pipe, says that one was received, and ends the process where nothing is to be saved or on a second Ctrl-C. The handlers
themselves do nothing: they may interrupt the main thread while it holds a lock of the output.

This module imports only the standard library, because the command listens before it imports the rest.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from types import FrameType
from typing import Self

STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later
INTERRUPTED_EXIT_CODE = 130
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_ALWAYS = frozenset({signal.SIGTERM, signal.SIGINT})
_EXIT_CODE_FLAG = "--stopped-exit-code"
_MOST = 255  # of an exit code


class ExitCodeError(Exception):
    """The value of --stopped-exit-code is no exit code."""


class StopRequest:
    """The first signal that asked a run to stop, if there was one."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def is_set(self) -> bool:
        """Return whether there was one."""
        return self.signal is not None


@contextlib.contextmanager
def stop_requested() -> Generator[StopRequest]:
    """Note the first of the signals `STOPPING`; a second SIGINT raises KeyboardInterrupt. Only in the main thread.

    This is for programs that call `train` themselves. A signal that such a program ignores or handles stays as it is,
    except SIGTERM and SIGINT.
    """
    request = StopRequest()

    def handle(number: int, _: FrameType | None) -> None:
        if request.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = request.signal or signal.Signals(number)

    with _handled(handle):
        yield request


class Listener:
    """Acts on signals from a thread, whatever the main thread does. A context manager; only in the main thread.

    Until `saving` is called, a signal ends the process. From then on, the first signal is noted for the run, and a
    SIGINT after it ends the process. Other repeated signals do nothing, because shells and cluster managers send the
    same signal again while the run saves its state.

    Args:
        exit_code: of a process that a signal other than SIGINT stops.
        exit_process: ends the process with an exit code.
    """

    def __init__(self, *, exit_code: int = STOPPED_EXIT_CODE, exit_process: Callable[[int], object] = os._exit) -> None:
        self.exit_code = exit_code
        self.say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)
        """Prints one line about the first signal."""
        self.last_words: Callable[[], str] = lambda: "ended before training began"
        """Returns what to print when the process ends without saving."""
        self.before_end: Callable[[], object] = lambda: None
        """Called before that line."""
        self._exit_process = exit_process
        self._request, self._saves = StopRequest(), False
        self._taken: frozenset[int] = frozenset()
        self._lock = threading.Lock()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            watcher = threading.Thread(target=self._watch, args=(reading,), name="signals", daemon=True)
            self._open.callback(os.close, reading)
            self._open.callback(watcher.join)
            self._open.callback(os.close, writing)  # ends the thread
            self._open.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writing, warn_on_full_buffer=False))
            self._taken = self._open.enter_context(_handled(lambda *_: None))
            watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @contextlib.contextmanager
    def saving(self) -> Generator[StopRequest]:
        """Leave signals to a run, which looks at the request and saves. This is `stop_requested` for the command."""
        with self._lock:
            self._saves = True
        yield self._request

    def code_of(self, number: int | None) -> int:
        """Return the exit code of a process that the signal `number` ends; None: the first signal that was received."""
        interrupted = (self._request.signal if number is None else number) == signal.SIGINT
        return INTERRUPTED_EXIT_CODE if interrupted else self.exit_code

    def _watch(self, reading: int) -> None:
        while received := os.read(reading, 1):
            if received[0] in self._taken:  # the pipe also gets signals that others handle
                self._receive(signal.Signals(received[0]))

    def _receive(self, number: signal.Signals) -> None:
        with self._lock:
            is_first, saves = not self._request.is_set(), self._saves
            self._request.signal = self._request.signal or number
        if not saves or (number == signal.SIGINT and not is_first):
            try:
                self.before_end()
                print(f"\n{number.name}: {self.last_words()}", file=sys.stderr, flush=True)
                sys.stdout.flush()
            finally:
                self._exit_process(self.code_of(number))  # compiled programs and the compiler cannot be interrupted
        elif is_first:
            self.say(
                f"{number.name}: stopping after the current unroll, slice of gradient steps (about 5 s) or evaluation; "
                "a second Ctrl-C stops immediately, without saving"
            )


def started(arguments: list[str]) -> Listener:
    """Return a listener that listens for as long as the process lives, for a command line with these arguments."""
    listener = Listener()
    with contextlib.suppress(ExitCodeError):  # `take_exit_code` is called again, where the error is printed
        listener.exit_code = take_exit_code(arguments)[0]
    return listener.__enter__()


def take_exit_code(arguments: list[str]) -> tuple[int, list[str]]:
    """Return the value of --stopped-exit-code, and the arguments without it.

    Raises:
        ExitCodeError: it has no value, or one that is no exit code.
    """
    code, others, rest = str(STOPPED_EXIT_CODE), [], iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name.replace("_", "-") != _EXIT_CODE_FLAG:
            others.append(argument)
        else:
            code = value if equals else next(rest, "")
    if not (code.isascii() and code.isdecimal() and int(code) <= _MOST):
        raise ExitCodeError(f"{_EXIT_CODE_FLAG} must be a whole number from 0 to {_MOST}, got {code!r}")
    return int(code), others


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Generator[frozenset[int]]:
    """Give the signals `STOPPING` this handler, but leave what was ignored, such as SIGHUP under nohup.

    The context's value are the signals that have got it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield frozenset()
        return
    taken = [number for number in STOPPING if number in _ALWAYS or signal.getsignal(number) is signal.SIG_DFL]
    earlier = {number: signal.signal(number, handler) for number in taken}
    try:
        yield frozenset(taken)
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)
