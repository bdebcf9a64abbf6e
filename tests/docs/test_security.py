"""The commands of docs/security.md make files that a server and its clients take."""

import subprocess
from pathlib import Path

import grpc.aio

from serving.access.handshakes import REASONS
from serving.access.roles import Role
from serving.access.tls import Certificates
from serving.api.grpc_transport import GrpcTransport
from serving.api.rpc import Method, RpcContext, RpcService
from serving.lock_settings import TlsFiles
from serving.sockets import TcpAddress
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


def test_the_reasons_are_those_of_the_server() -> None:
    assert [row[0].strip("`") for row in cells("docs/security.md", "| reason | meaning |")] == list(REASONS)
