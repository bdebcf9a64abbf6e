"""A worker process, as the supervisor starts it: `python -m serving.workers`."""

import gc
import logging
import os
import signal
import sys

if __name__ == "__main__":
    # A terminal's Ctrl-C and its end reach the supervisor too, which then stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Standard input and output carry messages. Whatever a library prints goes to the log, on standard error, instead.
    from_supervisor = os.fdopen(os.dup(0), "rb", buffering=0)
    to_supervisor = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    gc.disable()  # until everything is compiled: collections would take about 15 % of the start
    from serving.errors import shortage
    from serving.telemetry.logs import log_to_stderr

    log_to_stderr("auto", worker=os.getpid())  # until the supervisor says which format
    try:
        from serving.workers.worker import run_worker  # it imports JAX, which takes seconds
    except (ImportError, MemoryError, OSError) as error:
        logger = logging.getLogger("kilolayer")
        logger.error("cannot import the libraries that serving needs: %s", shortage(error) or error)
        sys.exit(1)
    sys.exit(run_worker(from_supervisor, to_supervisor))
