"""A training run without physics, short of memory: `python limited_run.py BYTES <flags of training/run.py>`.

Once its programs are compiled, the process may map so many bytes more than it has.
"""

import resource
import sys
from pathlib import Path
from typing import Any

from tests.training import probes
from training import trainer
from training.envs import registry
from training.programs import Programs
from training.run import main


def limit_once_compiled(room_bytes: int) -> None:
    compile_programs = trainer.compile_programs

    def compile_and_limit(*arguments: Any, **options: Any) -> Programs:
        programs = compile_programs(*arguments, **options)
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + room_bytes, resource.RLIM_INFINITY))
        return programs

    trainer.compile_programs = compile_and_limit


if __name__ == "__main__":
    room, *flags = sys.argv[1:]
    line = probes.Line()
    registry.make = lambda *_, **__: line
    limit_once_compiled(int(room))
    sys.exit(main(flags))
