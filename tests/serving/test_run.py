"""The command line: what it reads, and what becomes of a server process."""

import asyncio
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from serving.config import ConfigError, ServeConfig
from serving.run import parse
from serving.sockets import TcpAddress
from tests.serving.server_process import fail, flip_a_bit, launch, ready

GOOD = pb.ActRequest(state=[0] * 4, goal=[0] * 2)


def test_flags_become_the_configuration() -> None:
    numbers = ["--metrics-port", "2", "--max-batch-rows", "4", "--grace-s", "0.5"]
    arguments = ["--policies", "a", "b", *numbers, "--no-metrics", "--listen", "[::1]:1"]
    assert parse(arguments, {}) == ServeConfig(
        policies=(Path("a"), Path("b")),
        listen="[::1]:1",
        metrics_port=2,
        metrics=False,
        max_batch_rows=4,
        grace_s=0.5,
    )


def test_variables_stand_for_flags_and_a_flag_beats_its_variable() -> None:
    environ = {
        "KILOLAYER_POLICIES": "a:b",
        "KILOLAYER_LISTEN": "127.0.0.1:1",
        "KILOLAYER_METRICS": "No",
        "KILOLAYER_MAX_QUEUE_ROWS": "",  # as unset
        "OTHER_PORT": "x",
    }
    config = parse(["--listen", "unix:/run/a.sock"], environ)
    assert config == ServeConfig(policies=(Path("a"), Path("b")), listen="unix:/run/a.sock", metrics=False)
    other = parse(["--policies", "c", "--metrics"], environ)
    assert (other.policies, other.address) == ((Path("c"),), TcpAddress("127.0.0.1", 1))


def test_the_share_and_the_folder_of_sampled_rows_are_two_words_or_one_variable() -> None:
    flags = ["--log-rows", "0.01", "runs/rows", "--policies", "a", "--out-of-range", "refuse"]
    expected = ServeConfig(policies=(Path("a"),), log_rows=(0.01, Path("runs/rows")), out_of_range="refuse")
    assert parse(flags, {}) == expected
    environ = {"KILOLAYER_LOG_ROWS": "0.01:runs/rows", "KILOLAYER_OUT_OF_RANGE": "refuse"}
    assert parse(["--policies", "a"], environ) == expected
    with_colon = parse(["--policies", "a"], {"KILOLAYER_LOG_ROWS": "1:a:b"}).log_rows
    assert with_colon == (1.0, Path("a:b"))
    assert parse(["--log-rows", "0.5", "b", "--policies", "a"], environ).log_rows == (0.5, Path("b"))


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"KILOLAYER_METRICS_PORT": "tcp://10.0.0.1"},
            "KILOLAYER_METRICS_PORT must be an integer, such as 9464, got 'tcp://10.0.0.1'",
        ),
        ({"KILOLAYER_GRACE_S": "1 min"}, "KILOLAYER_GRACE_S must be a number, such as 10.0, got '1 min'"),
        ({"KILOLAYER_METRICS": "maybe"}, "KILOLAYER_METRICS must be true or false, got 'maybe'"),
        (
            {"KILOLAYER_MAX_BATCH_ROW": "8"},
            "MAX_BATCH_ROW is not a setting of the server; did you mean KILOLAYER_MAX_BATCH_ROWS?",
        ),
        (
            {"KILOLAYER_QUEUE_AGE": ""},
            "KILOLAYER_QUEUE_AGE is not a setting of the server; did you mean KILOLAYER_MAX_QUEUE_AGE_S?",
        ),
        ({}, "--policies is missing; name at least one folder, such as --policies runs/first/policies"),
    ],
)
def test_a_bad_variable_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse([], environ)


def test_variables_that_kubernetes_sets_for_services_are_no_settings() -> None:
    values = {"SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_GRPC": "80", "PORT": "tcp://10.0.0.1:80"}
    values |= {"PORT_80_TCP": "tcp://10.0.0.1:80", "PORT_80_TCP_ADDR": "10.0.0.1", "PORT_80_TCP_PROTO": "tcp"}
    environ = {f"KILOLAYER_WEB_{name}": value for name, value in values.items()}
    environ |= {f"KILOLAYER_{name}": value for name, value in values.items()}
    assert parse(["--policies", "a"], environ) == ServeConfig(policies=(Path("a"),))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"listen": ":1"}, "--listen must name a host, got ':1'; use 127.0.0.1 for this machine only, 0.0.0.0 for"),
        ({"listen": "127.0.0.1"}, "--listen must end with a port, got '127.0.0.1'; use HOST:PORT, such as 127.0.0.1:"),
        ({"listen": "50051"}, "--listen must end with a port, got '50051'; use HOST:PORT, such as 127.0.0.1:50051"),
        ({"listen": "a:-1"}, "--listen must end with a port, got 'a:-1'; use HOST:PORT, such as 127.0.0.1:50051"),
        ({"listen": "a:65536"}, "--listen must have a port from 0 to 65535, got 65536; 0 picks a free port"),
        ({"listen": "::1:50051"}, "--listen needs brackets around an IPv6 host, such as [::1]:50051, got '::1:50051'"),
        ({"listen": "unix:"}, "--listen must name a path after unix:, such as unix:/run/kilolayer/act.sock"),
        (
            {"listen": "unix:/" + 107 * "x"},
            "--listen must name a path of at most 107 bytes, got 108: /xxx",
        ),
        (
            {"listen": "unix:/a", "workers": 2},
            "--workers 2 needs a port, because gRPC cannot share a Unix socket between processes, got --listen unix:",
        ),
        ({"metrics_port": 65536}, "--metrics-port must be from 0 to 65535, got 65536; 0 picks a free port"),
        (
            {"metrics_port": 50051},
            "--metrics-port must differ from the port of --listen, got 50051 for both; 0 picks a free port",
        ),
        ({"workers": 0}, "--workers must be from 1 to 256, got 0; use at most one for each core"),
        ({"max_batch_rows": 0}, "--max-batch-rows must be a power of two from 1 to 65536, got 0; try 256"),
        ({"max_batch_rows": 100}, "--max-batch-rows must be a power of two from 1 to 65536, got 100; try 256"),
        ({"max_call_rows": 0}, "--max-call-rows must be from 1 to 65536, got 0; try 4096"),
        (
            {"max_queue_rows": 4095},
            "--max-queue-rows must be at least --max-call-rows, which is 4096, got 4095; try 8192",
        ),
        ({"max_queue_age_s": 0.0}, "--max-queue-age-s must be a positive number of seconds, got 0.0; try 1"),
        ({"max_compute_s": 0.0}, "--max-compute-s must be a positive number of seconds, got 0.0; try 30"),
        ({"max_batch_delay_s": -0.1}, "--max-batch-delay-s must be from 0 to 1 second, got -0.1; try 0.002"),
        ({"log_rows": (0.0, Path("a"))}, "--log-rows must begin with a share above 0, at most 1, got 0.0; try 0.01"),
        ({"log_rows": (1.5, Path("a"))}, "--log-rows must begin with a share above 0, at most 1, got 1.5; try 0.01"),
        (
            {"workers": 3, "log_rows_mb": 2},
            "--log-rows-mb must be at least 1 for each worker, which is 3, got 2; try 1024",
        ),
        ({"grace_s": float("inf")}, "--grace-s must be a positive number of seconds, got inf; try 10"),
        ({"grace_s": 0.0}, "--grace-s must be a positive number of seconds, got 0.0; try 10"),
    ],
)
def test_an_impossible_configuration_names_the_flag_the_value_and_one_that_works(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        dataclasses.replace(ServeConfig(policies=(Path("a"),)), **fields)


def test_both_ports_may_be_any_free_one() -> None:
    free = ServeConfig(policies=(Path("a"),), listen="127.0.0.1:0", metrics_port=0)
    assert (free.address, free.metrics_port) == (TcpAddress("127.0.0.1", 0), 0)
    with pytest.raises(ConfigError, match="--metrics-port must differ from the port of --listen, got 1 for both"):
        dataclasses.replace(free, listen="127.0.0.1:1", metrics_port=1, metrics=False)  # health is there nevertheless


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(["--help"], {})
    assert left.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(ServeConfig):
        assert "--" + field.name.replace("_", "-") in text
    assert "KILOLAYER_MAX_BATCH_ROWS=64" in text
    assert "--policies PATH [PATH ...]" in text
    assert "as training writes them. (required)" in " ".join(text.replace("│", " ").split())


def test_wrong_usage_is_exit_code_2() -> None:
    code, lines = fail("--max-batch-rows", "3", "--policies", "x")
    assert code == 2
    assert len(lines) == 1
    record = json.loads(lines[0])  # the format asked for is not known yet, and this is no terminal
    assert record["level"] == "ERROR"
    assert record["message"].startswith("--max-batch-rows must be a power of two")


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
                response = await stub.Act(GOOD, timeout=20)
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
            await asyncio.wait_for(loaded.wait(), timeout=30)
            process.send_signal(signal.SIGTERM)
            await asyncio.gather(*callers)

    with ready("--policies", str(tmp_path)) as (process, address, lines):
        asyncio.run(load(address, process))
        _, rest = process.communicate(timeout=30)
    assert process.returncode == 0
    assert answered >= 200
    # Neither cancelled nor timed out: each caller was told why, and then found nobody there.
    assert {code for code, _ in ends} == {grpc.StatusCode.UNAVAILABLE}
    assert any("shutting down" in text for _, text in ends)
    assert "Traceback" not in rest
    assert rest.splitlines()[-1].endswith("stopped; every accepted call was answered")
    assert sum("skipping version 2000" in line for line in lines) == 1
    assert lines[-1].rstrip().endswith("policies=point_u_maze@1000")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_libraries_are_imported_exits_0(tmp_path: Path, number: signal.Signals) -> None:
    with launch("--policies", str(tmp_path)) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while "numpy" not in maps.read_text():  # the first of those that take seconds
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_sigterm_while_compiling_exits_0(policies: Path) -> None:
    with launch("--policies", str(policies), "--max-batch-rows", "1024") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "NOT_SERVING until every policy is compiled" in line:
                break
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "ready:" not in rest
    assert "Traceback" not in rest
