"""The Python client with TLS: the servers that it trusts, those it does not, and what it says about each."""

from __future__ import annotations  # for Python 3.9

import contextlib
import datetime
import re
from collections.abc import Generator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

import kilolayer
from kilolayer.v1 import policy_pb2_grpc
from tests.clients.fakes import FakePolicy, free_port, start_server

AUTHORITY, OTHER_AUTHORITY = trustme.CA(), trustme.CA()
CA = AUTHORITY.cert_pem.bytes()
HERE = ("127.0.0.1", "localhost", "policy.example.com")


class Identity:
    """A certificate with its private key, as PEM."""

    def __init__(self, *names: str, authority: trustme.CA = AUTHORITY, ends: datetime.datetime | None = None) -> None:
        issued = authority.issue_cert(*names, not_after=ends)
        self.cert = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        self.key = issued.private_key_pem.bytes()

    def write(self, folder: Path) -> tuple[Path, Path]:
        (folder / "cert.pem").write_bytes(self.cert)
        (folder / "key.pem").write_bytes(self.key)
        return folder / "cert.pem", folder / "key.pem"


ROBOT = Identity("robot-7.example.com")


@contextlib.contextmanager
def serving(identity: Identity | None = None, *, asks_for_certificates: bool = False) -> Generator[str]:
    """Yield the address of a server that has `identity`, or that speaks plain text without one."""
    credentials = identity and grpc.ssl_server_credentials(
        [(identity.key, identity.cert)], CA if asks_for_certificates else None, asks_for_certificates
    )
    server, port = start_server(FakePolicy(), credentials=credentials or None)
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def failure(address: str, **arguments: Any) -> kilolayer.Unavailable:
    """Return the exception of a call, and check that a stream gives the same."""
    with kilolayer.PolicyClient(address, timeout_s=30, **arguments) as client:
        with pytest.raises(kilolayer.Unavailable) as act:
            client.act([0, 0, 0], [0, 0])
        with pytest.raises(kilolayer.Unavailable) as stream, client.stream() as opened:
            opened.act([0, 0, 0], [0, 0])
    assert _cause(stream.value) == _cause(act.value)
    return act.value


def _cause(error: kilolayer.Unavailable) -> str:
    """Return what an exception says after its method, without the DNS record that was missed first: A or AAAA."""
    return re.sub(r"qtype=\w+", "", str(error).partition(": ")[2])


@pytest.mark.parametrize("form", ["bytes", "path", "str"])
def test_a_server_of_the_own_authority_is_trusted(form: str, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(CA)
    ca = {"bytes": CA, "path": path, "str": str(path)}[form]
    with serving(Identity(*HERE)) as address:
        for each in (address, address.replace("127.0.0.1", "localhost")):
            with kilolayer.PolicyClient(each, tls=kilolayer.Tls(ca=ca), timeout_s=30) as client:
                assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
                with client.stream() as stream:
                    assert stream.act([0.25, 0, 0], [0, 0]).action.tolist() == [0.5, 0]


async def test_an_async_client_takes_the_same() -> None:
    with serving(Identity("policy.example.com"), asks_for_certificates=True) as address:
        tls = kilolayer.Tls(ca=CA, cert=ROBOT.cert, key=ROBOT.key)
        async with kilolayer.AsyncPolicyClient(
            address, tls=tls, server_name="policy.example.com", timeout_s=30
        ) as client:
            assert (await client.act([0.5, 0, 0], [0, 0])).action.tolist() == [1, 0]
        async with kilolayer.AsyncPolicyClient(address, tls=tls, timeout_s=30) as client:
            with pytest.raises(kilolayer.Unavailable, match="certificate is not for 127.0.0.1"):
                await client.act([0.5, 0, 0], [0, 0])


def test_a_client_shows_its_certificate_to_a_server_that_asks(tmp_path: Path) -> None:
    cert, key = ROBOT.write(tmp_path)
    with serving(Identity(*HERE), asks_for_certificates=True) as address:
        with kilolayer.PolicyClient(address, tls=kilolayer.Tls(ca=CA, cert=cert, key=key), timeout_s=30) as client:
            assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
        stranger = Identity("robot-7.example.com", authority=OTHER_AUTHORITY)
        for tls in (kilolayer.Tls(ca=CA), kilolayer.Tls(ca=CA, cert=stranger.cert, key=stranger.key)):
            error = failure(address, tls=tls)
            assert "it may require a certificate of the client, or not accept the one" in str(error)
            assert "tls=kilolayer.Tls(ca=..., cert=..., key=...)." in str(error)


def test_pem_bytes_that_do_not_belong_together_are_named_as_the_cause() -> None:
    other_key = Identity("robot-7.example.com").key
    with serving(Identity(*HERE), asks_for_certificates=True) as address:
        error = failure(address, tls=kilolayer.Tls(ca=CA, cert=ROBOT.cert, key=other_key))
    assert "gRPC cannot use the client's certificate with its key (" in str(error)
    assert str(error).endswith("Check that Tls.key is the key of Tls.cert.")


def test_the_server_name_replaces_the_host_of_the_address() -> None:
    with serving(Identity("policy.example.com")) as address:
        with kilolayer.PolicyClient(
            address, tls=kilolayer.Tls(ca=CA), server_name="policy.example.com", timeout_s=30
        ) as client:
            assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
        error = failure(address, tls=kilolayer.Tls(ca=CA), server_name="other.example.com")
        assert "the server's certificate is not for other.example.com (" in str(error)
        error = failure(address, tls=kilolayer.Tls(ca=CA))
        assert "the server's certificate is not for 127.0.0.1 (" in str(error)
        assert "pass one of its names as server_name." in str(error)


@pytest.mark.parametrize("name", ["localhost", "policy.example.com"])
def test_a_unix_socket_may_have_tls_too(name: str, tmp_path: Path) -> None:
    identity = Identity(name)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    policy_pb2_grpc.add_PolicyServicer_to_server(FakePolicy(), server)
    credentials = grpc.ssl_server_credentials([(identity.key, identity.cert)])
    server.add_secure_port(f"unix:{tmp_path}/act.sock", credentials)
    server.start()
    server_name = None if name == "localhost" else name
    with kilolayer.PolicyClient(
        f"unix:{tmp_path}/act.sock", tls=kilolayer.Tls(ca=CA), server_name=server_name, token="a", timeout_s=30
    ) as client:
        assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
    server.stop(0).wait()


def test_variables_turn_on_no_tls_for_a_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILOLAYER_TLS", "true")
    monkeypatch.setenv("KILOLAYER_TLS_CA", str(tmp_path / "missing"))
    monkeypatch.setenv("KILOLAYER_SERVER_NAME", "policy.example.com")
    server = grpc.server(futures.ThreadPoolExecutor(2))
    policy_pb2_grpc.add_PolicyServicer_to_server(FakePolicy(), server)
    server.add_insecure_port(f"unix:{tmp_path}/act.sock")
    server.start()
    with kilolayer.PolicyClient(f"unix:{tmp_path}/act.sock", timeout_s=30) as client:
        assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
    server.stop(0).wait()


def test_a_server_of_another_authority_is_named_as_the_cause() -> None:
    with serving(Identity(*HERE, authority=OTHER_AUTHORITY)) as address:
        error = failure(address, tls=kilolayer.Tls(ca=CA))
        assert "it was not issued by those in Tls(ca=...)" in str(error) or (
            "certificate was not issued by those in Tls(ca=...)" in str(error)
        )
        error = failure(address, tls=True)
        assert "issued by the public authorities that gRPC comes with" in str(error)
        assert "Pass the certificate of the server's authority as tls=kilolayer.Tls(ca=...)" in str(error)
        assert error.status == "UNAVAILABLE"


def test_an_expired_certificate_is_named_as_the_cause() -> None:
    ended = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)  # noqa: UP017  Python 3.9
    with serving(Identity(*HERE, ends=ended)) as address:
        error = str(failure(address, tls=kilolayer.Tls(ca=CA)))
    assert "certificate has expired (" in error or "or it has expired (" in error  # old versions of gRPC do not say
    assert "check this machine's clock." in error


def test_a_wait_in_vain_says_why() -> None:
    tls = kilolayer.Tls(ca=CA)
    with serving(Identity("policy.example.com")) as address, kilolayer.PolicyClient(address, tls=tls) as client:
        with pytest.raises(kilolayer.Unavailable):
            client.describe(timeout_s=60)  # the next attempts fail immediately
        with pytest.raises(kilolayer.DeadlineExceeded) as wait:
            client.wait_until_ready(5)
    assert f"at {address} was not ready within 5 s. The last attempt failed: the server's certificate is" in str(
        wait.value
    )
    assert str(wait.value).endswith("or pass one of its names as server_name.")


def test_plain_text_to_a_server_with_tls_is_named_as_the_cause() -> None:
    with serving(Identity(*HERE)) as address:
        error = failure(address)
    assert "it may require TLS (" in str(error)
    assert "Pass tls=kilolayer.Tls(ca=...), or tls=True" in str(error)


def test_tls_to_a_server_without_is_named_as_the_cause() -> None:
    with serving() as address:
        error = failure(address, tls=kilolayer.Tls(ca=CA))
    assert "the client uses TLS, and no TLS server answers at the address (" in str(error)
    assert "--tls-cert" in str(error)
    assert str(error).endswith("or pass tls=False.")


def test_an_absent_server_is_explained_with_tls_as_without() -> None:
    error = failure(f"127.0.0.1:{free_port()}", tls=kilolayer.Tls(ca=CA))
    assert "Connection refused" in str(error)
    assert str(error).endswith("Check the address, or send the next observation in a moment.")


def test_an_unknown_host_is_named_as_the_cause() -> None:
    error = failure("no-such-host.invalid:50051")
    assert "the host name is not known (" in str(error)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    cert, key = ROBOT.write(tmp_path)
    contents = {
        "empty": b"",
        "no_pem": b"MIIB secret-content",
        "damaged": b"-----BEGIN CERTIFICATE-----\nc2VjcmV0LWNvbnRlbnQ=\n-----END CERTIFICATE-----\n",
        "bad_key": b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0LWNvbnRlbnQ=\n-----END PRIVATE KEY-----\n",
        "locked_key": b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nc2VjcmV0\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "other_key": Identity("a.example.com").key,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {"cert": cert, "key": key, "missing": tmp_path / "missing", **{name: tmp_path / name for name in contents}}


@pytest.mark.parametrize(
    ("arguments", "culprit", "complaint"),
    [
        ({"ca": "missing"}, "missing", "cannot be read: No such file or directory"),
        ({"ca": "empty"}, "empty", "must hold a certificate in PEM"),
        ({"ca": "no_pem"}, "no_pem", "must hold a certificate in PEM"),
        ({"ca": "damaged"}, "damaged", "is damaged"),
        ({"ca": "key"}, "key", "must hold a certificate in PEM"),
        ({"cert": "cert", "key": "missing"}, "missing", "cannot be read"),
        ({"cert": "cert", "key": "cert"}, "cert", "must hold a private key in PEM"),
        ({"cert": "key", "key": "key"}, "key", "must hold a certificate in PEM"),
        ({"cert": "cert", "key": "bad_key"}, "bad_key", "cannot be used"),
        ({"cert": "cert", "key": "locked_key"}, "locked_key", "has a passphrase"),
        ({"cert": "cert", "key": "other_key"}, "other_key", "is not the key of Tls.cert"),
    ],
)
def test_a_bad_file_is_named_and_its_content_is_not(
    files: dict[str, Path], *, arguments: dict[str, str], culprit: str, complaint: str
) -> None:
    tls = kilolayer.Tls(**{name: files[file] for name, file in arguments.items()})
    with pytest.raises(ValueError, match=complaint) as refusal:
        kilolayer.PolicyClient("localhost:50051", tls=tls)
    assert repr(str(files[culprit])) in str(refusal.value)
    assert "c2Vj" not in str(refusal.value)
    assert "secret" not in str(refusal.value)
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"cert": b"x"}, r"Tls.key \(KILOLAYER_TLS_CLIENT_KEY\) must be given with Tls.cert"),
        ({"key": b"x"}, r"Tls.cert \(KILOLAYER_TLS_CLIENT_CERT\) must be given with Tls.key"),
        ({"ca": b"MIIBsecret"}, "Tls.ca, PEM bytes, must hold a certificate in PEM"),
        ({"ca": "-----BEGIN CERTIFICATE-----\nsecret"}, "Tls.ca must be a path or PEM bytes, got PEM as a string"),
        ({"ca": 5}, "Tls.ca must be a path or PEM bytes, got int"),
        ({"ca": "/tmp/\ud800"}, "cannot be read: not a path"),
        ({"ca": "~nobody-of-this-name/ca.pem"}, "cannot be read: No such file or directory"),
    ],
)
def test_bad_tls_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as refusal:
        kilolayer.PolicyClient("localhost:50051", tls=kilolayer.Tls(**arguments))
    assert "secret" not in str(refusal.value)


def test_tls_shows_paths_and_no_content(tmp_path: Path) -> None:
    cert, key = ROBOT.write(tmp_path)
    assert repr(kilolayer.Tls(cert=cert, key=str(key))) == f"Tls(ca=None, cert={str(cert)!r}, key={str(key)!r})"
    text = ROBOT.key.decode()
    for shown in (repr(kilolayer.Tls(ca=CA, cert=ROBOT.cert, key=ROBOT.key)), str(kilolayer.Tls(cert="a", key=text))):
        assert "<PEM>" in shown
        assert text.splitlines()[1] not in shown


def test_the_variables_of_a_server_on_the_same_machine_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CERT", "KEY", "CLIENT_CA"):
        monkeypatch.setenv(f"KILOLAYER_TLS_{name}", str(tmp_path / "missing"))
    with serving() as address, kilolayer.PolicyClient(address, timeout_s=60) as client:
        assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]


def test_the_variables_turn_tls_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = ROBOT.write(tmp_path)
    (tmp_path / "ca.pem").write_bytes(CA)
    monkeypatch.setenv("KILOLAYER_TLS_CA", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("KILOLAYER_TLS_CLIENT_CERT", str(cert))
    monkeypatch.setenv("KILOLAYER_TLS_CLIENT_KEY", str(key))
    monkeypatch.setenv("KILOLAYER_SERVER_NAME", "policy.example.com")
    with serving(Identity("policy.example.com"), asks_for_certificates=True) as address:
        with kilolayer.PolicyClient(address, timeout_s=30) as client:
            assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
        assert "not for 127.0.0.1" in str(failure(address, tls=kilolayer.Tls(ca=CA), server_name=""))
        for name, value in (("tls", False), ("KILOLAYER_TLS", "false")):
            arguments = {name: value} if name == "tls" else {}
            monkeypatch.setenv("KILOLAYER_TLS", "true" if arguments else str(value))
            assert "it may require TLS" in str(failure(address, **arguments))
    for name in ("CA", "CLIENT_CERT", "CLIENT_KEY"):
        monkeypatch.delenv(f"KILOLAYER_TLS_{name}")
    monkeypatch.setenv("KILOLAYER_TLS", "True")
    with serving() as address:
        assert "the client uses TLS" in str(failure(address))
    monkeypatch.setenv("KILOLAYER_TLS", "1")
    with pytest.raises(ValueError, match="KILOLAYER_TLS must be true or false, got '1'"):
        kilolayer.PolicyClient("localhost:50051")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"tls": "ca.pem"}, r"tls must be True, False or kilolayer.Tls\(...\), got str"),
        ({"server_name": "a"}, "server_name is the name that a certificate must have, so it needs TLS"),
        (
            {"tls": True, "server_name": "https://a"},
            r"server_name \(KILOLAYER_SERVER_NAME\) must be a host name without",
        ),
        ({"tls": True, "server_name": "\ud800"}, r"server_name \(KILOLAYER_SERVER_NAME\) must be a host name"),
        ({"tls": True, "server_name": 5}, r"server_name \(KILOLAYER_SERVER_NAME\) must be a host name"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        kilolayer.PolicyClient("localhost:50051", **arguments)
