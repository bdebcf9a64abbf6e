"""The commands of docs/security.md make files that a server and its clients take, and work in their order."""

import contextlib
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import grpc.aio
import pytest

from serving.access.handshakes import REASONS
from serving.access.roles import Role
from serving.access.tls import Certificates
from serving.api.grpc_transport import GrpcTransport
from serving.api.rpc import Method, RpcContext, RpcService
from serving.lock_settings import TlsFiles
from serving.sockets import TcpAddress
from tests.docs import random_policy
from tests.docs.blocks import ROOT, blocks
from tests.docs.test_facts import cells

PAGE = ROOT / "docs" / "security.md"


async def test_a_server_and_a_client_with_the_certificates_of_the_page(tmp_path: Path) -> None:
    commands = "\n".join(block.text for block in blocks(PAGE) if block.text.startswith("openssl"))
    done = subprocess.run(  # noqa: ASYNC221  nothing else runs meanwhile
        ["bash", "-e", "-c", commands], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

    async def echo(raw: bytes, _context: RpcContext) -> bytes:
        return raw

    certificates = Certificates(TlsFiles(tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "ca.pem"))
    assert certificates.warnings() == []
    service = RpcService("test.Service", {"Echo": Method(Role.ANYONE, echo)}, {})
    transport = GrpcTransport([service], max_request_bytes=99, certificates=certificates)
    bound = await transport.start(TcpAddress("127.0.0.1", 0))
    assert isinstance(bound, TcpAddress)
    try:
        client = [(tmp_path / name).read_bytes() for name in ("ca.pem", "robot.key", "robot.pem")]
        for host in ("127.0.0.1", "localhost"):
            async with grpc.aio.secure_channel(
                f"{host}:{bound.port}", grpc.ssl_channel_credentials(*client)
            ) as channel:
                assert await channel.unary_unary("/test.Service/Echo")(b"hi", timeout=10) == b"hi"
    finally:
        await transport.stop(1)


TOKENS = ("cell-7", "console")  # in the order of the file
PLACEHOLDER = re.compile(r'(?<=sha256 = ")[0-9a-f]{64}')
FOR_A_TEST = " --metrics-port 0 --no-metrics --max-batch-rows 1"
ADDRESS = re.compile(r"(grpc|admin)=\S*?:(\d+)(?= |$)", re.MULTILINE)
SHOWN_PORT = {"50051": "grpc", "50052": "admin"}
READER_S = 480


def environment() -> dict[str, str]:
    """A newcomer's: the programs are on the path, and no variable of the project is set."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("KILOLAYER_")}
    path = os.pathsep.join([Path(sys.executable).parent.as_posix(), own["PATH"]])
    return own | {"PATH": path, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'clients/python'}"}


@contextlib.contextmanager
def serving(command: str, folder: Path) -> Generator[dict[str, str]]:
    """Run a server that listens on free ports, and yield its ports by their name."""
    command = command.replace("--admin 0.0.0.0:50052", "--admin 127.0.0.1:0").replace(":50051", ":0").rstrip()
    command += FOR_A_TEST
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=folder, env=environment(), stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr is not None
        ready = next((line for line in server.stderr if "ready: " in line), None)
        assert ready is not None, f"the server ended before it was ready: {command}"
        yield dict(ADDRESS.findall(ready))
        server.terminate()
        server.communicate(timeout=120)
    assert server.returncode == 0


@pytest.mark.slow  # starts four servers
def test_a_newcomer_can_follow_the_page_from_an_empty_folder(tmp_path: Path) -> None:
    folder, policies, ports, servers = tmp_path / "empty", tmp_path / "policies", dict[str, str](), 0
    folder.mkdir()
    random_policy.publish(policies)
    shown = [block for block in blocks(PAGE) if block.language != "text"]
    with contextlib.ExitStack() as running:
        for block in shown:
            text = block.text.replace("/path/to/policies", str(policies))
            if block.language == "toml":
                digests = iter(hashlib.sha256((folder / f"{name}.token").read_bytes()).hexdigest() for name in TOKENS)
                (folder / "tokens.toml").write_text(PLACEHOLDER.sub(lambda _, found=digests: next(found), text))
            elif text.startswith("kilolayer-serve"):
                running.close()  # as the page says: stop the server above
                ports = running.enter_context(serving(text, folder))
                servers += 1
            else:
                for port, name in SHOWN_PORT.items():
                    text = text.replace(f"localhost:{port}", f"localhost:{ports.get(name, port)}")
                command = [sys.executable, "-c"] if block.language == "python" else ["bash", "-e", "-c"]
                done = subprocess.run(
                    [*command, text],
                    cwd=folder,
                    env=environment(),
                    capture_output=True,
                    text=True,
                    timeout=READER_S,
                    check=False,
                )
                assert done.returncode == 0, f"{block.where}\n{done.stderr}"
                if block.language == "python" or text.startswith("kilolayer-admin"):
                    assert "point_u_maze" in done.stdout, block.where
    assert servers == 4


def test_the_reasons_are_those_of_the_server() -> None:
    assert [row[0].strip("`") for row in cells("docs/security.md", "| reason | meaning |")] == list(REASONS)
