"""TLS on a gRPC port: who can connect, whose files are refused, and how changed files are taken up."""

import asyncio
import contextlib
import datetime
import logging
import os
import subprocess
from collections.abc import AsyncGenerator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from serving.access import pem
from serving.access.roles import Role
from serving.access.tls import Certificates
from serving.api.grpc_transport import GrpcTransport
from serving.api.rpc import Method, RpcContext, RpcService
from serving.errors import StartupError
from serving.lock_settings import TlsFiles
from serving.sockets import TcpAddress
from tests.serving.access.authority import HOUR, NOW, Authority, Identity, credentials, write

ECHO = "/test.Service/Echo"
ALONE = ("grpc.use_local_subchannel_pool", 1)  # otherwise channels to one address share a connection
PASSED = datetime.datetime.now(datetime.UTC) - HOUR


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def other() -> Authority:
    return Authority()


async def echo(raw: bytes, _context: RpcContext) -> bytes:
    return raw


@contextlib.asynccontextmanager
async def served(certificates: Certificates) -> AsyncGenerator[str]:
    """The address of a server with the method Echo."""
    service = RpcService("test.Service", {"Echo": Method(Role.ANYONE, echo)}, {})
    transport = GrpcTransport([service], max_request_bytes=1024, certificates=certificates)
    address = await transport.start(TcpAddress("127.0.0.1", 0))
    try:
        yield str(address)
    finally:
        await transport.stop(1)


async def call(address: str, client: grpc.ChannelCredentials | None, *, name: str = "") -> str:
    """The status of a call over a new connection, of a client that takes the server for `name`."""
    options = [ALONE, *([("grpc.ssl_target_name_override", name)] if name else [])]
    channel = (
        grpc.aio.secure_channel(address, client, options=options)
        if client
        else grpc.aio.insecure_channel(address, options=options)
    )
    async with channel:
        try:
            assert await channel.unary_unary(ECHO)(b"hi", timeout=10) == b"hi"
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"


async def test_who_can_connect_with_tls(authority: Authority, other: Authority, tmp_path: Path) -> None:
    async with served(Certificates(write(tmp_path, authority.sign()))) as address:
        assert await call(address, credentials(authority.cert)) == "OK"
        assert await call(address, credentials(authority.cert, authority.sign("robot"))) == "OK"  # it is not asked
        assert await call(address, credentials(other.cert)) == "UNAVAILABLE"
        assert await call(address, credentials(authority.cert), name="other.example") == "UNAVAILABLE"
        assert await call(address, None) == "UNAVAILABLE"


async def test_who_can_connect_with_mutual_tls(authority: Authority, other: Authority, tmp_path: Path) -> None:
    files = write(tmp_path, other.sign(), client_ca=authority.cert)
    clients = {
        "signed": (authority.sign("robot"), "OK"),
        "none": (None, "UNAVAILABLE"),
        "of another authority": (other.sign("robot"), "UNAVAILABLE"),
        "expired": (authority.sign("robot", not_after=PASSED), "UNAVAILABLE"),
        "signed by itself": (self_signed(tmp_path), "UNAVAILABLE"),
    }
    async with served(Certificates(files)) as address:
        for name, (identity, expected) in clients.items():
            assert await call(address, credentials(other.cert, identity)) == expected, name
        assert await call(address, None) == "UNAVAILABLE"


def self_signed(folder: Path) -> Identity:
    words = ["-x509", "-newkey", "rsa:2048", "-noenc", "-subj", "/CN=robot", "-days", "2"]
    files = ["-keyout", str(folder / "self.key"), "-out", str(folder / "self.pem")]
    subprocess.run(["openssl", "req", *words, *files], check=True, capture_output=True)
    return Identity((folder / "self.pem").read_bytes(), (folder / "self.key").read_bytes())


async def test_an_expired_certificate_of_the_server_is_a_warning_and_clients_refuse_it(
    authority: Authority, tmp_path: Path
) -> None:
    certificates = Certificates(write(tmp_path, authority.sign(not_after=PASSED)))
    expired = f"--tls-cert {tmp_path}/server.pem has a certificate that expired at {PASSED:%Y-%m-%d %H:%M} UTC"
    assert certificates.warnings() == [expired]
    async with served(certificates) as address:
        assert await call(address, credentials(authority.cert)) == "UNAVAILABLE"


def test_warnings_about_dates(authority: Authority, tmp_path: Path) -> None:
    files = write(tmp_path, authority.sign(not_after=NOW), client_ca=authority.sign(not_after=NOW + 3 * HOUR).cert)

    def at(hours: int) -> list[str]:
        return Certificates(files, wall_clock=(NOW + hours * HOUR).timestamp).warnings()

    cert, ca = (
        f"--tls-cert {files.cert} has a certificate that",
        f"--tls-client-ca {files.client_ca} has a certificate that",
    )
    assert at(-2) == [
        f"{cert} is not valid before 2026-07-01 11:00 UTC",
        f"{ca} is not valid before 2026-07-01 14:00 UTC",
    ]
    assert at(1) == [f"{cert} expired at 2026-07-01 12:00 UTC", f"{ca} is not valid before 2026-07-01 14:00 UTC"]
    assert at(4) == [f"{cert} expired at 2026-07-01 12:00 UTC", f"{ca} expired at 2026-07-01 15:00 UTC"]


async def test_changed_files_are_used_from_the_next_connection_on(
    authority: Authority, other: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files = write(tmp_path, authority.sign(), client_ca=authority.cert)
    robot = authority.sign("robot")
    async with served(Certificates(files)) as address:
        channel = grpc.aio.secure_channel(address, credentials(authority.cert, robot), options=[ALONE])
        assert await channel.unary_unary(ECHO)(b"hi", timeout=10) == b"hi"
        write(tmp_path, other.sign(), client_ca=other.cert)
        assert await call(address, credentials(other.cert, other.sign("robot"))) == "OK"
        assert await call(address, credentials(other.cert, robot)) == "UNAVAILABLE"
        assert await call(address, credentials(authority.cert, other.sign("robot"))) == "UNAVAILABLE"
        assert await channel.unary_unary(ECHO)(b"hi", timeout=10) == b"hi"  # an open connection goes on
        await channel.close()
    assert caplog.messages == [f"the certificate in {files.cert} is in use from now on"]


async def test_files_behind_the_links_of_kubernetes_change_together(
    authority: Authority, other: Authority, tmp_path: Path
) -> None:
    for name, each in (("first", authority), ("second", other)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, each.sign())
    (tmp_path / "..data").symlink_to("first")
    for name in ("server.pem", "server.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    certificates = Certificates(TlsFiles(tmp_path / "server.pem", tmp_path / "server.key"))
    async with served(certificates) as address:
        assert await call(address, credentials(authority.cert)) == "OK"
        (tmp_path / "..data_tmp").symlink_to("second")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        assert await call(address, credentials(other.cert)) == "OK"


async def test_files_that_do_not_fit_change_nothing_and_are_one_line(
    authority: Authority, other: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = authority.sign(), other.sign()
    files = write(tmp_path, first)
    stays = "the certificate that was read before stays in use: "
    async with served(Certificates(files)) as address:
        files.cert.write_bytes(second.cert)  # and its key is not there yet
        for _ in range(2):
            assert await call(address, credentials(authority.cert)) == "OK"
        files.cert.write_bytes(second.cert[:200])
        assert await call(address, credentials(authority.cert)) == "OK"
        files.key.unlink()
        files.cert.write_bytes(second.cert)
        assert await call(address, credentials(authority.cert)) == "OK"
        files.key.write_bytes(second.key)
        assert await call(address, credentials(other.cert)) == "OK"
    lines = [
        f"{stays}--tls-key {files.key} is not the key of the first certificate in --tls-cert {files.cert}; name the",
        f"{stays}--tls-cert {files.cert} is damaged; it must be in PEM format",
        f"{stays}--tls-key {files.key} cannot be read: No such file or directory",
        f"the certificate in {files.cert} is in use from now on",
    ]
    assert len(caplog.messages) == len(lines)
    for message, line in zip(caplog.messages, lines, strict=True):
        assert message.startswith(line)


def test_files_that_cannot_be_used_are_read_again_once_they_change_or_after_a_second(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, now_s, count = write(tmp_path, authority.sign()), 100.0, 0
    certificates = Certificates(files, clock=lambda: now_s)
    read = pem.read

    def counted(files: TlsFiles) -> pem.Pem:
        nonlocal count
        count += 1
        return read(files)

    def reads(connections: int) -> int:
        before = count
        assert [certificates.fetch() for _ in range(connections)] == [None] * connections
        return count - before

    monkeypatch.setattr(pem, "read", counted)
    files.cert.write_bytes(b"x")
    assert reads(3) == 1
    now_s += 0.99
    assert reads(3) == 0
    now_s += 0.02
    assert reads(3) == 1
    files.cert.write_bytes(b"xx")
    assert reads(3) == 1
    write(tmp_path, authority.sign())
    assert certificates.fetch() is not None
    assert reads(3) == 0


def test_files_that_were_touched_are_not_taken_up_again(authority: Authority, tmp_path: Path) -> None:
    files = write(tmp_path, authority.sign())
    certificates = Certificates(files)
    os.utime(files.cert, (1, 1))
    assert certificates.fetch() is None


BAD_FILES = [
    ("cert", None, r"--tls-cert CERT cannot be read: No such file or directory"),
    ("cert", b"hello", r"--tls-cert CERT has no certificate; it must be in PEM format, with the line -----"),
    ("cert", b"-----BEGIN CERTIFICATE-----\nMII", r"--tls-cert CERT is damaged; it must be in PEM format, with the"),
    ("key", None, r"--tls-key KEY cannot be read: No such file or directory"),
    ("key", b"hello", r"--tls-key KEY has no private key; it must be in PEM format, with the line -----BEGIN PRIVATE"),
    ("key", b"-----BEGIN PRIVATE KEY-----\nMII", r"--tls-key KEY is damaged, or of an unknown kind; it must be in PEM"),
    ("client_ca", None, r"--tls-client-ca CA cannot be read: No such file or directory"),
    ("client_ca", b"", r"--tls-client-ca CA has no certificate; it must be in PEM format, with the line -----BEGIN"),
]


@pytest.mark.parametrize(("file", "content", "message"), BAD_FILES)
def test_a_bad_file_is_named(
    authority: Authority, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    files = write(tmp_path, authority.sign(), client_ca=authority.cert)
    path: Path = getattr(files, file)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartupError) as error:
        Certificates(files)
    shown = str(error.value).replace(str(files.cert), "CERT").replace(str(files.key), "KEY")
    assert shown.replace(str(files.client_ca), "CA").startswith(message)


def test_the_contents_of_files_are_not_shown() -> None:
    shown = [repr(pem.Pem(b"cert", b"key", client_ca)) for client_ca in (None, b"authority")]
    assert shown == ["Pem(client_ca=None)", "Pem(client_ca=...)"]


def test_the_key_of_another_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    files = write(tmp_path, Identity(authority.sign().cert, authority.sign().key))
    with pytest.raises(
        StartupError, match="server.key is not the key of the first certificate in --tls-cert .*server.pem"
    ):
        Certificates(files)


@pytest.mark.parametrize("form", ["pkcs8", "traditional"])
def test_an_encrypted_key_is_refused(authority: Authority, tmp_path: Path, form: str) -> None:
    files = write(tmp_path, authority.sign())
    kind = ["pkey"] if form == "pkcs8" else ["ec"]
    command = ["openssl", *kind, "-in", str(files.key), "-aes256", "-passout", "pass:secret"]
    encrypted = subprocess.run(command, capture_output=True, check=True).stdout
    files.key.write_bytes(encrypted)
    with pytest.raises(StartupError, match="--tls-key .*server.key is encrypted, and the server asks for no password"):
        Certificates(files)


@pytest.mark.parametrize(
    "kind", ["ed25519", "ec -pkeyopt ec_paramgen_curve:secp256k1", "ec -pkeyopt ec_paramgen_curve:P-521"]
)
def test_a_key_that_grpc_cannot_use_is_refused(tmp_path: Path, kind: str) -> None:
    files = TlsFiles(tmp_path / "server.pem", tmp_path / "server.key")
    words = ["-x509", "-newkey", *kind.split(), "-noenc", "-subj", "/CN=a", "-days", "2"]
    paths = ["-keyout", str(files.key), "-out", str(files.cert)]
    subprocess.run(["openssl", "req", *words, *paths], check=True, capture_output=True)
    with pytest.raises(
        StartupError, match="server.pem has a key of a kind that gRPC does not use; make one for the curve"
    ):
        Certificates(files)


@pytest.mark.parametrize(("version", "is_accepted"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
async def test_the_oldest_protocol_is_tls_1_2(
    authority: Authority, tmp_path: Path, version: str, is_accepted: bool
) -> None:
    words = ["s_client", version, "-cipher", "ALL:@SECLEVEL=0", "-alpn", "h2", "-connect"]
    async with served(Certificates(write(tmp_path, authority.sign()))) as address:
        client = await asyncio.create_subprocess_exec(
            "openssl", *words, address, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        printed, _ = await client.communicate()
    assert (b"-----BEGIN CERTIFICATE-----" in printed) is is_accepted
