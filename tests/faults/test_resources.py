"""Readings of a program whose use of each resource is known."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import resources

PROGRAM = """
import subprocess, sys, threading
child = subprocess.Popen([sys.executable, "-c", "import sys; print('up', flush=True); sys.stdin.read()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
sys.stdout.write("up\\n"); sys.stdout.flush()
sys.stdin.readline()
held, files = bytearray(b"x" * 50_000_000), [open("/dev/null") for _ in range(20)]
done = threading.Event()
threads = [threading.Thread(target=done.wait) for _ in range(5)]
[thread.start() for thread in threads]
sys.stdout.write("grown\\n"); sys.stdout.flush()
sys.stdin.readline()
done.set()
child.communicate()
"""


def test_memory_descriptors_and_threads_of_a_tree_are_summed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("12345")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=pipe, stdout=pipe, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        before = resources.read(program.pid, log=log)
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline() == "grown\n"
        after = resources.read(program.pid)
        program.stdin.write("\n")
    assert before.processes == 2
    assert before.log_bytes == 5
    assert before.threads == 2
    assert after.threads == 7
    assert after.descriptors - before.descriptors == 20
    assert 49e6 < after.resident_bytes - before.resident_bytes < 56e6
    assert after.cpu_s >= before.cpu_s


def test_the_tree_of_a_process_begins_with_it_and_one_that_is_gone_is_an_error() -> None:
    assert next(resources.tree(os.getpid())) == os.getpid()
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with pytest.raises(ProcessLookupError, match=f"there is no process {ended.pid}"):
        resources.read(ended.pid)
