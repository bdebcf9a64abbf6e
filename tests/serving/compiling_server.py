"""A server whose compilation lasts until a test says so: `python compiling_server.py FOLDER FLAGS...`.

The flags are those of serving/run.py. The first program that is compiled makes a file `compiling` in FOLDER, and takes
until there is a file `go-on`.
"""

import os
import sys
import time
from pathlib import Path

os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # as the server does before it imports the library

from serving import run
from serving.engine.engine import Engine, Executable, Kind
from serving.policies import compilation

FOLDER = Path(sys.argv.pop(1))


class SlowlyCompiled(Engine):
    """Compiles what the policy needs, once it may."""

    def build(self, kind: Kind, bucket: int) -> Executable:
        """Wait, then compile."""
        (FOLDER / "compiling").touch()
        while not (FOLDER / "go-on").exists():
            time.sleep(0.01)
        return super().build(kind, bucket)


if __name__ == "__main__":
    compilation.Engine = SlowlyCompiled
    sys.exit(run.main())
