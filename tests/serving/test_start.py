"""Starts of a real server: what fails is one line and exit code 1; what is not needed is not missed."""

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from tests.clients.fakes import free_port
from tests.serving.server_process import fail, flip_a_bit, full_pipe, launch, ready

SETPRIV = shutil.which("setpriv")
GOOD = pb.ActRequest(state=[0] * 4, goal=[0] * 2)


@pytest.mark.parametrize("flag", ["--listen", "--metrics-port"])
def test_a_taken_port_is_one_line_and_exit_code_1(policies: Path, flag: str) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as a server would that is willing to share
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        value = f"127.0.0.1:{port}" if flag == "--listen" else str(port)
        code, lines = fail("--policies", str(policies), flag, value)
    assert code == 1
    assert len(lines) == 1
    address = value if flag == "--listen" else f"{port} on 127.0.0.1"
    assert f"ERROR cannot bind {flag} {address}: address in use; choose another" in lines[0]


def test_a_missing_folder_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    code, lines = fail("--policies", str(tmp_path / "nowhere"))
    assert code == 1
    assert len(lines) == 1
    assert f"ERROR {tmp_path / 'nowhere'} does not exist; train a policy first" in lines[0]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_folder_for_rows_that_cannot_be_written_is_one_line_and_exit_code_1(
    policies: Path, tmp_path: Path, workers: str
) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "rows")
    code, lines = fail("--policies", str(policies), "--log-rows", "0.01", folder, "--workers", workers)
    assert code == 1
    assert len(lines) == 1
    assert f"ERROR cannot write sampled rows to {folder} (Not a directory); choose a folder that" in lines[0]


def test_a_damaged_bundle_is_named_and_exit_code_1(policies: Path, tmp_path: Path) -> None:
    shutil.copytree(policies / "1000", tmp_path / "1000")
    flip_a_bit(tmp_path / "1000")
    code, lines = fail("--policies", str(tmp_path))
    assert code == 1
    (line,) = lines
    problem = f"version 1000 of point_u_maze cannot be served: {tmp_path / '1000'} is not a usable policy (hash)"
    assert f"ERROR {problem}" in line


def test_strict_refuses_an_older_version(publish: Callable[..., Path], policies: Path, tmp_path: Path) -> None:
    shutil.copytree(policies / "1000", tmp_path / "1000")
    flip_a_bit(publish(tmp_path, 2000))
    code, lines = fail("--policies", str(tmp_path), "--strict")
    assert code == 1
    assert len(lines) == 1
    assert f"ERROR --strict: the latest version cannot be served: {tmp_path / '2000'} is not a usable" in lines[0]


@pytest.mark.slow
def test_a_host_of_another_machine_is_one_line_and_exit_code_1(policies: Path) -> None:
    for workers in ("1", "2"):
        code, lines = fail("--policies", str(policies), "--listen", "192.0.2.1:0", "--insecure", "--workers", workers)
        assert code == 1
        assert len(lines) == 2
        assert "WARNING connections to 192.0.2.1:0 are not encrypted, because --insecure allows plain text" in lines[0]
        assert "ERROR the host 192.0.2.1 of --listen is not an address of this machine; use 127.0.0.1 for" in lines[1]


@pytest.mark.slow
@pytest.mark.skipif(not (SETPRIV and os.geteuid() == 0), reason="needs root and setpriv")
def test_what_is_not_permitted_is_one_line_and_exit_code_1(policies: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    for arguments, message in (
        (["--policies", str(tmp_path / "locked")], f"cannot read {tmp_path / 'locked'} (Permission denied); check its"),
        (["--policies", str(tmp_path / "locked" / "x")], "/locked/x (Permission denied); check its permissions"),
        (
            ["--policies", str(policies), "--listen", "127.0.0.1:80"],
            "cannot bind --listen 127.0.0.1:80: not permitted; ports",
        ),
        (["--policies", str(policies), "--metrics-port", "80"], "cannot bind --metrics-port 80 on 127.0.0.1: not per"),
    ):
        code, lines = fail(*arguments, prefix=[str(SETPRIV), "--bounding-set=-all", "--inh-caps=-all"])
        assert code == 1
        assert len(lines) == 1
        assert message in lines[0]


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("-n 20", "only 20 file descriptors are allowed (ulimit -n), and the server needs 128; raise the limit"),
        (
            "-v 1300000",
            "the address space is limited to 1.2 GiB (ulimit -v), which is too little for the libraries; allow 4 GiB",
        ),
        (
            "-v 150000",
            "the address space is limited to 0.1 GiB (ulimit -v), which is too little for the libraries; allow 4 GiB",
        ),
    ],
)
def test_a_limit_that_is_too_small_is_one_line_and_exit_code_1(tmp_path: Path, limit: str, message: str) -> None:
    code, lines = fail("--policies", str(tmp_path), prefix=["bash", "-c", f'ulimit {limit}; exec "$@"', "bash"])
    assert code == 1
    (line,) = lines
    assert line.endswith(f"ERROR {message}")


def test_variables_of_a_service_of_kubernetes_are_ignored_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KILOLAYER_PORT", "tcp://10.0.0.1:50051")
    monkeypatch.setenv("KILOLAYER_SERVICE_HOST", "10.0.0.1")
    (tmp_path / "file").touch()
    code, lines = fail("--policies", str(tmp_path), "--log-rows", "1", str(tmp_path / "file" / "rows"))
    assert code == 1
    ignoring, failed = lines
    assert ignoring.endswith(
        "INFO ignoring variables that Kubernetes sets for a Service: KILOLAYER_PORT, KILOLAYER_SERVICE_HOST"
    )
    assert "cannot write sampled rows" in failed


@pytest.mark.slow
def test_64_bit_numbers_in_the_shell_change_nothing(policies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    with ready("--policies", str(policies)) as (_, _, lines):
        assert "WARNING ignoring JAX_ENABLE_X64=1: this program sets it itself" in lines[0]
        assert lines[-1].rstrip().endswith("policies=point_u_maze@1000")


@pytest.mark.slow
def test_a_gpu_that_is_asked_for_and_missing_is_one_line_and_exit_code_1(
    policies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # on a machine with a GPU
    code, lines = fail("--policies", str(policies))
    assert code == 1
    (line,) = lines
    assert "ERROR JAX_PLATFORMS=cuda asks for an NVIDIA GPU, and JAX cannot use one: " in line


def first_answer(address: str) -> pb.ActResponse:
    """Call until the server answers, at most 480 s."""
    ends = time.monotonic() + 480
    with grpc.insecure_channel(address) as channel:
        while True:
            try:
                return PolicyStub(channel).Act(GOOD, timeout=60)
            except grpc.RpcError:
                assert time.monotonic() < ends
                time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_without_stderr_serves(policies: Path, workers: int) -> None:
    port = free_port()
    closed = ["bash", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "bash"]
    with launch(
        "--policies", str(policies), "--listen", f"127.0.0.1:{port}", "--workers", str(workers), prefix=closed
    ) as process:
        assert first_answer(f"127.0.0.1:{port}").version == "1000"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=240) == 0


@pytest.mark.slow
def test_a_second_start_compiles_nothing_anew(policies: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def programs() -> set[str]:
        return {path.name for path in (tmp_path / "kilolayer" / "jax").iterdir() if path.name.endswith("-cache")}

    with ready("--policies", str(policies)):
        first = programs()
    assert len(first) >= 6  # ACT, SAMPLE and SCORE, for one row and for two
    with ready("--policies", str(policies)):
        assert programs() == first


@pytest.mark.slow
def test_a_cache_folder_that_cannot_be_written_is_a_warning_and_the_server_serves(
    policies: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with ready("--policies", str(policies)) as (_, _, lines):
        assert "WARNING compiled programs are not kept for the next start: " in lines[0]
        assert sum("compiled programs" in line for line in lines) == 1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_whose_stderr_nobody_reads_answers_and_stops(policies: Path, workers: int) -> None:
    port = free_port()
    reading, writing = full_pipe()
    full = ["bash", "-c", f'exec "$@" 2>&{writing}', "bash"]
    flags = ["--policies", str(policies), "--listen", f"127.0.0.1:{port}", "--workers", str(workers)]
    with launch(*flags, prefix=full, pass_fds=[writing]) as process:
        assert first_answer(f"127.0.0.1:{port}").version == "1000"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=240) == 0
    os.close(reading)
    os.close(writing)
