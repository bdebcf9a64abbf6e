"""Programs that stand for workers: they send and receive messages, and compute nothing."""

import sys
from pathlib import Path

from serving.config import ServeConfig

CONFIG = ServeConfig(policies=(Path("a"), Path("b c")), workers=2)
PROGRAM = (
    f"import os, signal, sys\nsys.path[:] = {sys.path!r}\nfrom serving.workers.messages import *\n"
    "def say(message): os.write(1, to_line(message))\n"
)


def command(program: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM + program]
