"""TLS and tokens on the HTTP port, over real sockets."""

import asyncio
import contextlib
import dataclasses
import json
import socket
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving import run
from serving.access import handshakes
from serving.access.guard import Guard
from serving.access.handshakes import HandshakeFailures
from serving.access.refusals import Refusals
from serving.access.roles import Role
from serving.access.tls import Certificates
from serving.access.tokens import Tokens
from serving.api.grpc_transport import GrpcTransport
from serving.api.handlers import RpcHandlers
from serving.api.held_bytes import HeldBytes
from serving.api.http.exchange import Exchange, HttpReply, HttpRequest
from serving.api.http_port import http_transport
from serving.api.open_inference.service import OpenInferenceService
from serving.config import ServeConfig
from serving.errors import UnauthenticatedError
from serving.sockets import TcpAddress
from serving.telemetry.metrics import Metrics
from tests.serving.access.authority import Authority, Identity, write
from tests.serving.access.token_samples import bearer, secret, token
from tests.serving.fakes import BUNDLE, MODEL, AnsweringBatcher, policies_of
from tests.serving.http_bench import GET, HEADER_S, LIMITS, SEND_S, Peer, Timers, echo, post, until

TOKENS = (token("robot", Role.ACT, calls_per_second=1.0), token("viewer", Role.DESCRIBE))
BODY = {
    "inputs": [
        {"name": "state", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]},
        {"name": "goal", "datatype": "FP32", "shape": [1, 2], "data": [5, 6]},
    ]
}
INFER = f"/v2/models/{MODEL}/infer"
NOWHERE = TcpAddress("127.0.0.1", 0)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def other() -> Authority:
    return Authority()


@contextlib.asynccontextmanager
async def guarded() -> AsyncGenerator[tuple[Peer, CollectorRegistry]]:
    """A client of a server with tokens, whose clock stands still."""
    collectors, config = CollectorRegistry(), ServeConfig(policies=(BUNDLE.path,), http_port=0)
    metrics = Metrics(collectors)
    handlers = RpcHandlers(metrics)
    policies = policies_of(AnsweringBatcher())
    transport = http_transport(
        OpenInferenceService(policies, handlers=handlers, metrics=metrics, config=config),
        config,
        handlers=handlers,
        held=HeldBytes(2**24),
        max_body_bytes=2**20,
        max_connections=8,
        metrics=metrics,
        guard=Guard(Tokens(TOKENS), Refusals(metrics.refused.labels), clock=lambda: 100.0),
    )
    assert transport
    address = await transport.start(NOWHERE)
    reader, writer = await asyncio.open_connection(address.host, address.port)
    try:
        yield Peer(reader, writer), collectors
    finally:
        writer.close()
        await transport.stop(0)


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: h", *headers, "", ""]).encode()


def authorization(name: str) -> str:
    ((key, value),) = bearer(name)
    return f"{key}: {value}"


async def test_each_path_needs_the_role_of_its_method() -> None:
    describing = ["", f"/models/{MODEL}", f"/models/{MODEL}/ready", f"/models/{MODEL}/config", "/models/stats"]
    async with guarded() as (peer, collectors):

        async def status(raw: bytes) -> int:
            peer.send(raw)
            return (await peer.reply())[0]

        for path in ("/v2/health/live", "/v2/health/ready"):
            assert await status(get(path)) == 200
        for path in describing:
            statuses = [await status(get(f"/v2{path}", *who)) for who in ([], [authorization("robot")])]
            statuses.append(await status(get(f"/v2{path}", authorization("viewer"))))
            assert statuses == [401, 403, 200], path
        body = json.dumps(BODY).encode()
        assert await status(post(body, authorization("viewer"), path=INFER)) == 403
        assert await status(post(body, authorization("robot"), path=INFER)) == 200
        assert await status(post(body, authorization("robot"), path=INFER)) == 429  # the rate is one a second
        counts = [collectors.get_sample_value("kilolayer_refused_total", {"reason": "missing"})]
        counts += [collectors.get_sample_value("kilolayer_refused_total", {"reason": each}) for each in ("role",)]
        assert counts == [5, 6]


async def test_wrong_tokens_get_the_same_reply_before_the_body_is_read() -> None:
    wrong = {
        "missing": [],
        "unknown": [authorization("stranger")],
        "malformed": [f"authorization: Basic {secret('robot')}"],
        "two": [authorization("robot"), authorization("robot")],
        "two, one of them empty": [authorization("robot"), "authorization:"],
    }
    async with guarded() as (peer, collectors):
        replies = set[tuple[int, str, bytes]]()
        for headers in wrong.values():
            peer.send(post(b"", *headers, path=INFER).replace(b"Content-Length: 0", b"Content-Length: 10"))
            status, fields, body = await peer.reply()
            replies.add((status, fields["www-authenticate"], body))
            peer.send(b"0123456789")  # the connection goes on
        assert [(status, scheme, json.loads(body)) for status, scheme, body in replies] == [
            (401, "bearer", {"error": str(UnauthenticatedError())})
        ]
        for reason, count in (("missing", 1), ("unknown", 1), ("malformed", 3)):
            assert collectors.get_sample_value("kilolayer_refused_total", {"reason": reason}) == count


# TLS.


class Served:
    """An HTTP port with TLS."""

    def __init__(self, address: TcpAddress, *, held: HeldBytes, timers: Timers, failures: HandshakeFailures) -> None:
        self._address, self.held, self.timers, self.failures = address, held, timers, failures

    async def connect(self, ca: bytes | None, identity: Identity | None = None, *, folder: Path | None = None) -> Peer:
        """A client that trusts `ca` and has the certificate `identity`; None: it speaks plain text."""
        context = None
        if ca is not None:
            context = ssl.create_default_context(cadata=ca.decode())
            if identity and folder:
                (folder / "robot.pem").write_bytes(identity.key + identity.cert)
                context.load_cert_chain(folder / "robot.pem")
        name = "localhost" if context else None
        return Peer(
            *await asyncio.open_connection(self._address.host, self._address.port, ssl=context, server_hostname=name)
        )

    async def status(self, ca: bytes | None, identity: Identity | None = None, *, folder: Path | None = None) -> int:
        """The status of a request over a new connection; 0: there is no reply."""
        try:
            peer = await self.connect(ca, identity, folder=folder)
        except (ssl.SSLError, ConnectionError):
            return 0
        try:
            peer.send(GET)
            return (await peer.reply())[0]
        except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError, UnicodeDecodeError):
            return 0
        finally:
            peer.writer.close()

    def refuse(self, ca: bytes) -> None:
        """Connect as a client that trusts only `ca`, and says so, which those of asyncio do not."""
        context = ssl.create_default_context(cadata=ca.decode())
        with (
            socket.create_connection((self._address.host, self._address.port), timeout=30) as connection,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            context.wrap_socket(connection, server_hostname="localhost")

    def is_resumed(self, context: ssl.SSLContext) -> bool | None:
        """Whether the second of two connections goes on with the session of the first."""
        session = is_resumed = None
        for _ in range(2):
            with (
                socket.create_connection((self._address.host, self._address.port), timeout=30) as connection,
                context.wrap_socket(connection, server_hostname="localhost", session=session) as encrypted,
            ):
                encrypted.sendall(GET)
                assert encrypted.recv(12) == b"HTTP/1.1 200"
                session, is_resumed = encrypted.session, encrypted.session_reused
        return is_resumed

    async def failed(self, **counts: int) -> None:
        """Wait until so many handshakes have failed, by reason."""
        seen = dict[str, int]()

        def are_counted() -> bool:
            for reason, count in self.failures.take().items():
                seen[reason] = seen.get(reason, 0) + count
            return seen == counts

        await until(are_counted)


@contextlib.asynccontextmanager
async def served(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Served]:
    from serving.api.http.transport import HttpTransport

    failures, timers = HandshakeFailures(), Timers()
    monkeypatch.setattr(handshakes, "FAILURES", failures)

    async def answer(request: HttpRequest, exchange: Exchange) -> HttpReply:
        if request.target == "/large":
            return HttpReply(200, (), bytes(2**25))
        return await echo(request, exchange)

    held = HeldBytes(2**27)
    transport = HttpTransport(answer, held=held, limits=LIMITS, certificates=certificates, call_later=timers.call_later)
    try:
        yield Served(await transport.start(NOWHERE), held=held, timers=timers, failures=failures)
        await until(lambda: not held.total)
    finally:
        await transport.stop(0)


async def test_requests_over_tls(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(Certificates(write(tmp_path, authority.sign())), monkeypatch) as server:
        peer = await server.connect(authority.cert)
        peer.send(GET + post(bytes(70_000)) + GET)
        assert [(await peer.reply())[2] for _ in range(3)] == [b"GET /a?b 0", b"POST / 70000", b"GET /a?b 0"]
        peer.send(b"GET /large HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert len((await peer.reply())[2]) == 2**25
        assert await peer.end() == b""
        peer.writer.close()
        await server.failed()


async def test_a_refused_request_over_tls_gets_its_reply_although_more_comes(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(Certificates(write(tmp_path, authority.sign())), monkeypatch) as server:
        peer = await server.connect(authority.cert)
        peer.send(post(bytes(2_000_000)))
        status, headers, _ = await peer.reply()
        assert (status, headers["connection"]) == (413, "close")
        peer.writer.close()


async def test_failed_handshakes_are_counted_by_reason(
    authority: Authority, other: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(Certificates(write(tmp_path, authority.sign(), client_ca=authority.cert)), monkeypatch) as server:
        robot = authority.sign("robot")
        assert await server.status(authority.cert, robot, folder=tmp_path) == 200
        assert await server.status(authority.cert) == 0
        await server.failed(no_client_certificate=1)
        assert await server.status(authority.cert, other.sign("robot"), folder=tmp_path) == 0
        await server.failed(untrusted_client_certificate=1)
        assert await server.status(None) == 0
        await server.failed(plain_text=1)
        await asyncio.to_thread(server.refuse, other.cert)
        await server.failed(refused_by_client=1)


async def test_changed_files_are_used_by_both_ports(
    authority: Authority, other: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(write(tmp_path, authority.sign(), client_ca=authority.cert))
    grpc_port = GrpcTransport([], max_request_bytes=1024, certificates=certificates)
    address = await grpc_port.start(NOWHERE)
    assert isinstance(address, TcpAddress)
    async with served(certificates, monkeypatch) as server:
        robot, robot_of_other = authority.sign("robot"), other.sign("robot")
        assert await server.status(authority.cert, robot, folder=tmp_path) == 200
        write(tmp_path, other.sign(), client_ca=other.cert)
        assert await server.status(other.cert, robot_of_other, folder=tmp_path) == 200
        assert await server.status(other.cert, robot, folder=tmp_path) == 0
        context = ssl.create_default_context(cadata=other.cert.decode())
        context.load_cert_chain(tmp_path / "robot.pem")
        context.set_alpn_protocols(["h2"])
        _, writer = await asyncio.open_connection(
            address.host, address.port, ssl=context, server_hostname="localhost"
        )  # the client trusts only the new certificate
        writer.close()
    await grpc_port.stop(0)


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "begun"])
async def test_a_handshake_has_the_time_of_headers(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    async with served(Certificates(write(tmp_path, authority.sign())), monkeypatch) as server:
        peer = await server.connect(None)
        peer.send(sent)
        await server.timers.started(HEADER_S, 1)
        server.timers.fire(HEADER_S)
        with contextlib.suppress(ConnectionResetError):  # if the server has not read what was sent
            assert await peer.end() == b""
        peer.writer.close()


async def test_a_reply_over_tls_that_is_not_received_is_dropped(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(Certificates(write(tmp_path, authority.sign())), monkeypatch) as server:
        peer = await server.connect(authority.cert)
        peer.writer.transport.pause_reading()  # pyright: ignore[reportAttributeAccessIssue]
        peer.send(b"GET /large HTTP/1.1\r\nHost: h\r\n\r\n")
        await server.timers.started(SEND_S, 1)
        assert server.held.total > 0

        def is_dropped() -> bool:
            server.timers.fire(SEND_S)  # the kernel may have taken a part since the last time
            return not server.held.total

        await until(is_dropped)
        peer.writer.transport.abort()


async def test_the_oldest_protocol_is_tls_1_2(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.api.http.tls import TlsContexts

    context = TlsContexts(Certificates(write(tmp_path, authority.sign()))).fetch()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.num_tickets == 0


async def test_with_an_authority_for_clients_no_session_is_resumed(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS 1.2 would resume one by its number, without the certificate of the client."""
    robot = authority.sign("robot")
    (tmp_path / "robot.pem").write_bytes(robot.key + robot.cert)
    context = ssl.create_default_context(cadata=authority.cert.decode())
    context.load_cert_chain(tmp_path / "robot.pem")
    async with served(Certificates(write(tmp_path, authority.sign(), client_ca=authority.cert)), monkeypatch) as server:
        assert await asyncio.to_thread(server.is_resumed, context) is False
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(server.is_resumed, context)


def test_with_tls_the_url_is_https() -> None:
    plain = ServeConfig(policies=(BUNDLE.path,), http_port=8000)
    encrypted = dataclasses.replace(plain, tls_cert=Path("c"), tls_key=Path("k"))
    assert [each.http_url(TcpAddress("::1", 8000)) for each in (plain, encrypted)] == [
        "http://[::1]:8000",
        "https://[::1]:8000",
    ]


def test_plain_text_over_http_needs_the_flag(caplog: pytest.LogCaptureFixture) -> None:
    config = ServeConfig(policies=(BUNDLE.path,), listen="0.0.0.0:1", http_port=2, insecure=True)
    assert run._has_locks(config)  # pyright: ignore[reportPrivateUsage]
    assert [message.partition(" are ")[0] for message in caplog.messages] == [
        "connections to 0.0.0.0:1",
        "connections to 0.0.0.0:2",
    ]
