"""Failed TLS handshakes are counted and logged by reason."""

import datetime
import logging
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from serving.access.handshakes import REASONS, HandshakeFailures
from tests.serving.access.authority import HOUR, Authority, credentials, write

PREFIX = (
    "I1201 02:26:25.060836    3423 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL: error:"
)
VERIFY = "1000007d:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: "
LINES = [
    ("100000c0:SSL routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE: Invalid", "no_client_certificate"),
    (f"{VERIFY}certificate has expired", "expired_client_certificate"),
    (f"{VERIFY}certificate is not yet valid", "expired_client_certificate"),
    (f"{VERIFY}self signed certificate", "untrusted_client_certificate"),
    (f"{VERIFY}unable to get local issuer certificate", "untrusted_client_certificate"),
    ("100000f7:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER: Invalid certificate verification", "plain_text"),
    ("1000009c:SSL routines:OPENSSL_internal:HTTP_REQUEST: Invalid certificate verification context", "plain_text"),
    ("100000f0:SSL routines:OPENSSL_internal:UNSUPPORTED_PROTOCOL: Invalid certificate verification", "protocol"),
    ("10000418:SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA", "refused_by_client"),
    ("10000070:SSL routines:OPENSSL_internal:BAD_PACKET_LENGTH: Invalid certificate verification context", "other"),
]


@pytest.mark.parametrize(("line", "reason"), LINES)
def test_each_reason(line: str, reason: str) -> None:
    failures = HandshakeFailures()
    failures.read(PREFIX + line)
    assert failures.take() == {reason: 1}
    assert failures.take() == {}
    assert reason in REASONS


def test_a_flood_is_one_line_in_10_seconds_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 100.0
    failures = HandshakeFailures(clock=lambda: now_s)
    for _ in range(3):
        failures.read(PREFIX + LINES[0][0])
    failures.read(PREFIX + LINES[-1][0])
    now_s = 109.9
    failures.read(PREFIX + LINES[0][0])
    now_s = 110.0
    failures.read(PREFIX + LINES[0][0])
    assert caplog.messages == [
        "refused a TLS connection: the client has no certificate",
        "refused a TLS connection: another reason (BAD_PACKET_LENGTH)",
        "refused 4 TLS connections: the client has no certificate",
    ]
    assert failures.take() == {"no_client_certificate": 5, "other": 1}


def test_lines_of_other_libraries_are_logged_and_other_lines_of_grpc_are_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    failures = HandshakeFailures()
    failures.read(
        "W1201 02:26:22.044399    3416 log.cc:102] Log level INFO is not suitable for production. Prefer WARN"
    )
    failures.read("I1201 02:26:22.044399    3416 server.cc:7] started")
    failures.read("")
    failures.read("terminate called without an active exception")
    assert caplog.messages == ["a native library says: terminate called without an active exception"]
    assert failures.take() == {}


def test_a_flood_of_other_lines_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 100.0
    failures = HandshakeFailures(clock=lambda: now_s)
    for number in range(60):
        failures.read(f"E {number}")
    now_s = 110.0
    failures.read("E last")
    assert caplog.messages == [f"a native library says: E {each}" for each in [*range(50), "last"]]


# A server, in a process of its own, whose stderr is watched. It answers each line with what has failed by then.
PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from serving.access import handshakes
handshakes.prepare()
handshakes.watch()
from serving.access.roles import Role
from serving.access.tls import Certificates
from serving.api.grpc_transport import GrpcTransport
from serving.api.rpc import Method, RpcService
from serving.lock_settings import TlsFiles
from serving.sockets import TcpAddress
from serving.telemetry.logs import log_to_stderr

async def main():
    async def echo(raw, context):
        return raw
    log_to_stderr("text")
    certificates = Certificates(TlsFiles(*map(Path, sys.argv[1:])))
    service = RpcService("test.Service", {"Echo": Method(Role.ANYONE, echo)}, {})
    transport = GrpcTransport([service], max_request_bytes=99, certificates=certificates)
    print(await transport.start(TcpAddress("127.0.0.1", 0)), flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        taken = {}
        while not taken:  # the thread that reads gRPC's lines is a moment late
            await asyncio.sleep(0.01)
            taken = dict(handshakes.FAILURES.take())
        print(taken, flush=True)
    await transport.stop(1)
    os.write(2, b"from a native library\\n")
    await asyncio.sleep(0.1)

asyncio.run(main())
"""


def test_what_a_server_counts_and_logs(tmp_path: Path) -> None:
    authority, other = Authority(), Authority()
    files = write(tmp_path, authority.sign(), client_ca=authority.cert)
    expired = authority.sign("robot", not_after=datetime.datetime.now(datetime.UTC) - HOUR)
    refused = {
        "no_client_certificate": credentials(authority.cert),
        "expired_client_certificate": credentials(authority.cert, expired),
        "untrusted_client_certificate": credentials(authority.cert, other.sign("robot")),
        "plain_text": None,
    }
    command = [sys.executable, "-c", PROGRAM, *map(str, (files.cert, files.key, files.client_ca))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as server:
        assert server.stdin
        assert server.stdout
        address = server.stdout.readline().strip()
        for reason, client in refused.items():
            assert not connects(address, client)
            server.stdin.write("\n")
            server.stdin.flush()
            assert server.stdout.readline() == f"{{{reason!r}: 1}}\n"
        assert connects(address, credentials(authority.cert, authority.sign("robot")))
        _, errors = server.communicate(timeout=30)
    texts = [line.split(" WARNING ", 1)[1] for line in errors.splitlines()]
    assert texts == [
        "refused a TLS connection: the client has no certificate",
        "refused a TLS connection: the client's certificate has expired, or is not valid yet",
        "refused a TLS connection: no authority in --tls-client-ca has signed the client's certificate",
        "refused a TLS connection: the client speaks plain text; it needs TLS",
        "a native library says: from a native library",
    ]


def connects(address: str, client: grpc.ChannelCredentials | None) -> bool:
    """Whether a call is answered over a new connection, of which the client makes only one."""
    channel = grpc.secure_channel(address, client) if client else grpc.insecure_channel(address)
    try:
        return channel.unary_unary("/test.Service/Echo")(b"hi", timeout=10) == b"hi"
    except grpc.RpcError:
        return False
    finally:
        channel.close()
