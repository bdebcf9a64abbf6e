"""A training run that kills itself at a given moment: `python killed_run.py EVENT FRAGMENT <flags of training/run.py>`.

EVENT is one of Python's audit events and FRAGMENT a part of the path it names; at the first such event, before it has
happened, the process gets SIGKILL. An empty EVENT never comes.
"""

import os
import signal
import sys

from training.run import main


def kill_at(event: str, fragment: str) -> None:
    def watch(name: str, arguments: tuple[object, ...]) -> None:
        if name == event and any(fragment in str(argument) for argument in arguments):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


if __name__ == "__main__":
    moment, path, *flags = sys.argv[1:]
    if moment:
        kill_at(moment, path)
    sys.exit(main(flags))
