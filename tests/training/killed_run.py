"""A training run without physics that signals itself: `python killed_run.py EVENT FRAGMENT NUMBER <flags of run.py>`.

EVENT is one of Python's audit events and FRAGMENT a part of the path it names; at the first such event, before it has
happened, the process gets the signal NUMBER, and goes on once the run has noted it. With `compiling` as EVENT, it gets
the signal when it compiles its programs, which it never ends. An empty EVENT never comes.
"""

import os
import signal
import sys
import threading
import time
from typing import Any

from tests.training import probes
from training import stop_signals
from training.envs import registry
from training.run import main

COMPILING = "compiling"


def kill_at(event: str, fragment: str, number: int) -> None:
    requests = every_stop_request()

    def watch(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal event
        if name == event and any(fragment in str(argument) for argument in arguments):
            event = ""
            os.kill(os.getpid(), number)
            while not any(request.is_set() for request in requests):
                time.sleep(0.01)

    sys.addaudithook(watch)


def every_stop_request() -> list[stop_signals.StopRequest]:
    """The requests that are made from now on."""
    requests: list[stop_signals.StopRequest] = []
    make = stop_signals.StopRequest.__init__

    def make_and_note(request: stop_signals.StopRequest) -> None:
        make(request)
        requests.append(request)

    stop_signals.StopRequest.__init__ = make_and_note
    return requests


def kill_while_compiling(number: int) -> None:
    from training import trainer

    def never(*_arguments: Any, **_options: Any) -> Any:
        os.kill(os.getpid(), number)
        threading.Event().wait()

    trainer.compile_programs = never


if __name__ == "__main__":
    moment, path, which, *flags = sys.argv[1:]
    if moment == COMPILING:
        kill_while_compiling(int(which))
    elif moment:
        kill_at(moment, path, int(which or signal.SIGKILL))
    line = probes.Line()
    registry.make = lambda *_, **__: line
    sys.exit(main(flags))
