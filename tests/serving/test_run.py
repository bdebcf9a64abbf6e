"""What becomes of a server process."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from tests.held_import import HeldImport
from tests.serving.server_process import fail, flip_a_bit, launch, ready

COMPILING = Path(__file__).parent / "compiling_server.py"
GOOD = pb.ActRequest(state=[0] * 4, goal=[0] * 2)


def test_wrong_usage_is_exit_code_2() -> None:
    code, lines = fail("--max-batch-rows", "3", "--policies", "x")
    assert code == 2
    assert len(lines) == 1
    assert "ERROR --max-batch-rows must be a power of two" in lines[0]
    code, lines = fail("--worker", "3", "--log-format=json")
    assert code == 2
    (record,) = map(json.loads, lines)
    assert record["level"] == "ERROR"
    assert record["message"] == "--worker is not a flag; did you mean --workers? --help lists all flags"


def test_a_variable_of_clients_in_place_of_a_lock_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILOLAYER_TLS_CA", "ca.pem")
    code, lines = fail("--policies", "x", "--listen", "0.0.0.0:1")
    assert code == 1
    assert len(lines) == 2
    assert lines[0].endswith(
        "WARNING KILOLAYER_TLS_CA is read by clients only; the server's setting is KILOLAYER_TLS_CLIENT_CA"
    )
    assert "ERROR --listen 0.0.0.0:1 accepts plain text" in lines[1]


def test_sigterm_under_load_answers_what_was_accepted_and_exits_0(
    policies: Path, publish: Callable[..., Path], tmp_path: Path
) -> None:
    """And the newest version being damaged, the one before it answers."""
    shutil.copytree(policies / "1000", tmp_path / "1000")
    flip_a_bit(publish(tmp_path, 2000))
    answered = 0
    ends: list[tuple[grpc.StatusCode, str]] = []
    loaded = asyncio.Event()

    async def caller(stub: Any) -> None:
        nonlocal answered
        while True:
            try:
                response = await stub.Act(GOOD, timeout=60)
            except grpc.aio.AioRpcError as error:
                ends.append((error.code(), error.details() or ""))
                if "shutting down" in ends[-1][1]:
                    continue  # as a caller would that tries again at once
                return
            assert response.version == "1000"
            answered += 1
            if answered == 200:
                loaded.set()

    async def load(address: str, process: "subprocess.Popen[str]") -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = PolicyStub(channel)
            callers = [asyncio.create_task(caller(stub)) for _ in range(16)]
            await asyncio.wait_for(loaded.wait(), timeout=120)
            process.send_signal(signal.SIGTERM)
            await asyncio.gather(*callers)

    patience = ("--max-queue-age-s", "60", "--grace-s", "60")  # the machine may be busy
    with ready("--policies", str(tmp_path), *patience) as (process, address, lines):
        asyncio.run(load(address, process))
        _, rest = process.communicate(timeout=120)
    assert process.returncode == 0
    assert answered >= 200
    # Neither cancelled nor timed out. Most callers are told why, as test_server.py proves; those that a busy machine
    # kept from calling meanwhile find no server.
    assert {code for code, _ in ends} == {grpc.StatusCode.UNAVAILABLE}
    assert "Traceback" not in rest, rest
    assert rest.splitlines()[-1].endswith("stopped; every accepted call was answered")
    assert sum("skipping version 2000" in line for line in lines) == 1
    assert lines[-1].rstrip().endswith("policies=point_u_maze@1000")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_library_is_imported_is_one_line_and_exits_0(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldImport(tmp_path, "serving.sockets")  # the first one that a server imports
    monkeypatch.setenv("PYTHONPATH", held.environ["PYTHONPATH"])
    with launch("--policies", str(tmp_path)) as process:
        held.wait(process)
        maps = Path(f"/proc/{process.pid}/maps").read_text()
        process.send_signal(number)
        held.go_on()
        _, errors = process.communicate(timeout=240)
    assert "_asyncio" not in maps  # which logging does not need
    assert process.returncode == 0, errors
    (line,) = errors.splitlines()
    assert line.endswith("INFO stopped before any policy was loaded")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_libraries_are_imported_exits_0(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldImport(tmp_path, "numpy")  # the first of those that take seconds
    monkeypatch.setenv("PYTHONPATH", held.environ["PYTHONPATH"])
    with launch("--policies", str(tmp_path)) as process:
        held.wait(process)
        process.send_signal(number)
        held.go_on()
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_sigterm_while_compiling_exits_0(policies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with launch("--policies", str(policies), program=(COMPILING, tmp_path)) as process:
        assert process.stderr is not None
        assert any("NOT_SERVING until every policy is compiled" in line for line in process.stderr)
        while not (tmp_path / "compiling").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert any("stopping: refusing new calls" in line for line in process.stderr)
        (tmp_path / "go-on").touch()
        _, rest = process.communicate(timeout=240)
    assert process.returncode == 0
    assert "ready:" not in rest
    assert "Traceback" not in rest, rest
