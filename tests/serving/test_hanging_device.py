"""A computation that does not end: its callers are told, and the process ends for its supervisor."""

import os
import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub

PROGRAM = Path(__file__).parent / "hanging_server.py"


@pytest.mark.slow
def test_a_computation_that_hangs_fails_its_caller_and_ends_the_process_with_exit_code_1(policies: Path) -> None:
    flags = ["--listen", "127.0.0.1:0", "--metrics-port", "0", "--max-batch-rows", "1", "--log-format", "text"]
    limit = ["--max-compute-s", "5"]  # a busy machine may take long for the first answer
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(PROGRAM), "--policies", str(policies), *flags, *limit]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stderr
        address = next(found[1] for line in process.stderr if (found := re.search(r"ready: grpc=(\S+)", line)))
        with grpc.insecure_channel(address) as channel:
            act = PolicyStub(channel).Act
            assert len(act(pb.ActRequest(state=[0] * 4, goal=[0] * 2), timeout=60).action) == 2
            with pytest.raises(grpc.RpcError) as failed:
                act(pb.ActRequest(state=[1000, 0, 0, 0], goal=[0] * 2), timeout=120)
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert ("kilolayer-reason", "computation_timeout") in failed.value.trailing_metadata()
        _, rest = process.communicate(timeout=240)
    assert process.returncode == 1
    assert rest.splitlines()[-1].endswith(
        "ERROR policy point_u_maze cannot be computed any more: the computation of 1 row(s) has not ended within 5 s"
        " (--max-compute-s)"
    )
    assert "Traceback" not in rest
