"""The token of the Python client: where it comes from, when it is read again, where it is not sent or shown."""

from __future__ import annotations  # for Python 3.9

import os
import traceback
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

import kilolayer
from kilolayer._channel import Endpoint
from kilolayer._token import Token
from kilolayer.v1 import policy_pb2_grpc
from tests.clients.fakes import FakePolicy

SECRET = "s3cret-token"


class Guard(grpc.ServerInterceptor):
    """Lets calls in that bring the right token, and lists what each one brought."""

    def __init__(self) -> None:
        self.token = SECRET
        self.refusal = grpc.StatusCode.UNAUTHENTICATED
        self.brought: list[Any] = []

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        brought = dict(handler_call_details.invocation_metadata).get("authorization")
        self.brought.append(brought)
        if brought == f"Bearer {self.token}":
            return continuation(handler_call_details)

        def refuse(_request: Any, context: grpc.ServicerContext) -> None:
            context.abort(self.refusal, "access denied")

        if handler_call_details.method.endswith("ActStream"):
            return grpc.stream_stream_rpc_method_handler(refuse)
        return grpc.unary_unary_rpc_method_handler(refuse)


@pytest.fixture
def guard() -> Guard:
    return Guard()


@pytest.fixture
def guarded(guard: Guard) -> Iterator[str]:
    """The address of a server behind `guard`."""
    server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=[guard])
    policy_pb2_grpc.add_PolicyServicer_to_server(FakePolicy(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    return path


@pytest.mark.parametrize("source", ["argument", "path", "variable", "file variable"])
def test_every_call_brings_the_token(
    source: str, guarded: str, guard: Guard, *, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token: Any = {"argument": SECRET, "path": path}.get(source)
    if source == "variable":
        monkeypatch.setenv("KILOLAYER_TOKEN", SECRET)
    if source == "file variable":
        monkeypatch.setenv("KILOLAYER_TOKEN", "another, which is not used")
        monkeypatch.setenv("KILOLAYER_TOKEN_FILE", str(path))
    with kilolayer.PolicyClient(guarded, token=token, timeout_s=30, robot_id="7") as client, client.stream() as stream:
        client.wait_until_ready(30)
        client.act([0, 0, 0], [0, 0])
        client.score([0, 0, 0], [0, 0], goal=[0, 0])
        client.report(1, version="1", reached=True)
        client.list_policies()
        stream.act([0, 0, 0], [0, 0])
    assert guard.brought == 6 * [f"Bearer {SECRET}"]


async def test_an_async_client_brings_it_too(guarded: str, guard: Guard, path: Path) -> None:
    async with kilolayer.AsyncPolicyClient(guarded, token=path, timeout_s=30) as client:
        await client.act([0, 0, 0], [0, 0])
        guard.token = "another"
        with pytest.raises(kilolayer.AccessDenied):
            await client.act([0, 0, 0], [0, 0])


def test_without_a_token_none_is_sent(guarded: str, guard: Guard) -> None:
    with kilolayer.PolicyClient(guarded, timeout_s=30) as client:
        with pytest.raises(kilolayer.AccessDenied, match="access denied. Pass a token, or set KILOLAYER_TOKEN_FILE"):
            client.act([0, 0, 0], [0, 0])
        with pytest.raises(kilolayer.AccessDenied, match="Pass a token"):
            client.wait_until_ready(30)  # and does not wait
    assert guard.brought == [None, None]


def test_a_refused_token_is_named_by_its_origin_and_not_shown(guarded: str, guard: Guard, path: Path) -> None:
    guard.token = "another"
    for code, problem in (("UNAUTHENTICATED", "was not accepted"), ("PERMISSION_DENIED", "is not allowed to do this")):
        guard.refusal = grpc.StatusCode[code]
        for token, origin in ((path, repr(str(path))), (SECRET, "the argument token or KILOLAYER_TOKEN")):
            with kilolayer.PolicyClient(guarded, token=token, timeout_s=30) as client, client.stream() as stream:
                for call in (client.act, stream.act):
                    with pytest.raises(kilolayer.AccessDenied) as refusal:
                        call([0, 0, 0], [0, 0])
                    assert refusal.value.status == code
                    assert origin in str(refusal.value)
                    assert problem in str(refusal.value)
                    assert SECRET not in f"{refusal.value!r} {client!r} {vars(client)!r}"


@pytest.mark.parametrize("method", ["act", "stream"])
def test_a_rotated_token_is_taken_up(guarded: str, guard: Guard, *, path: Path, method: str) -> None:
    with kilolayer.PolicyClient(guarded, token=path, timeout_s=30) as client:

        def call() -> None:
            if method == "act":
                client.act([0, 0, 0], [0, 0])
            else:
                with client.stream() as stream:
                    stream.act([0, 0, 0], [0, 0])

        call()
        guard.token = "second"
        new = path.with_name("new")  # as Kubernetes does it: another file in its place
        new.write_text("second")
        new.replace(path)
        call()
        guard.token = "third"
        path.write_text("third")  # written over: another size
        call()
        path.unlink()
        call()  # still with the third
    assert guard.brought == [f"Bearer {token}" for token in (SECRET, "second", "third", "third")]


def test_a_refused_token_is_read_again_even_if_the_file_looks_the_same(guarded: str, guard: Guard, path: Path) -> None:
    with kilolayer.PolicyClient(guarded, token=path, timeout_s=30) as client:
        client.act([0, 0, 0], [0, 0])
        status = path.stat()
        with path.open("r+") as file:
            file.write("S3CRET-token")  # of the same length, in the same file, within one tick of its clock
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        guard.token = "S3CRET-token"
        with pytest.raises(kilolayer.AccessDenied):
            client.act([0, 0, 0], [0, 0])
        client.act([0, 0, 0], [0, 0])


@pytest.mark.parametrize("content", ["", "\n", "two words", "two\nlines", "café", "\0", "x" * 7001])
def test_a_bad_token_is_refused_and_not_shown(content: str, path: Path) -> None:
    path.write_text(content)
    for token, name in ((path, repr(str(path))), (content, "token (KILOLAYER_TOKEN) must hold")):
        with pytest.raises(ValueError, match="must hold one token of at most 7000 visible ASCII characters") as refusal:
            kilolayer.PolicyClient("localhost:50051", token=token)
        assert name in str(refusal.value)
        assert not content.strip() or content not in str(refusal.value)


def test_a_token_that_is_none_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable = "^the argument token names a file that cannot be read: "
    cases: list[tuple[Any, str]] = [
        (path.with_name("missing"), f"{unreadable}No such file or directory; its path is not shown"),
        (path.parent, f"{unreadable}Is a directory"),
        (path / "below", f"{unreadable}Not a directory"),
        (Path("~nobody-of-this-name/token"), f"{unreadable}No such file or directory"),
        (Path("/tmp/\ud800"), f"{unreadable}not a path"),
        (5, "token must be a string or a pathlib.Path to a file, got int"),
        (b"bytes", "token must be a string or a pathlib.Path to a file, got bytes"),
        (str(path), r"token is the path of a file; pass it as pathlib.Path\(...\)"),
        ("\ud800", "must hold one token"),
    ]
    for token, complaint in cases:
        with pytest.raises(ValueError, match=complaint):
            kilolayer.PolicyClient("localhost:50051", token=token)
    monkeypatch.setenv("KILOLAYER_TOKEN_FILE", str(path.with_name("missing")))
    with pytest.raises(ValueError, match="^KILOLAYER_TOKEN_FILE names a file that cannot be read: No such file"):
        kilolayer.PolicyClient("localhost:50051")


@pytest.mark.parametrize("token", [SECRET, "x" * 300])  # the longer one is too long for the name of a file
def test_a_token_in_place_of_its_file_is_not_shown(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    advice = "Pass a token itself as a str, or in KILOLAYER_TOKEN$"
    with pytest.raises(ValueError, match=f"^the argument token names a file .*{advice}") as argument:
        kilolayer.PolicyClient("localhost:50051", token=Path(token))
    monkeypatch.setenv("KILOLAYER_TOKEN_FILE", token)
    with pytest.raises(ValueError, match=f"^KILOLAYER_TOKEN_FILE names a file .*{advice}") as variable:
        kilolayer.PolicyClient("localhost:50051")
    for error in (argument.value, variable.value):
        assert token not in "".join(traceback.format_exception_only(type(error), error))
        assert error.__suppress_context__


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file or directory"),
        ("two words", "it must hold one token of at most 7000 visible ASCII characters, without spaces, and holds 9"),
    ],
)
def test_a_refusal_says_that_the_rotated_file_cannot_be_used(
    guarded: str, guard: Guard, *, path: Path, content: str | None, problem: str
) -> None:
    with kilolayer.PolicyClient(guarded, token=path, timeout_s=30) as client:
        client.act([0, 0, 0], [0, 0])
        guard.token = "second"
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
        refused = f"was not accepted, and a new one could not be read since: {problem}"
        for _ in range(2):
            with pytest.raises(kilolayer.AccessDenied, match=refused) as failure:
                client.act([0, 0, 0], [0, 0])
            assert f"The token from the file {str(path)!r} was" in str(failure.value)
            assert str(failure.value).endswith(". Correct the file, or ask the server's operator for access.")
            assert not content or content not in str(failure.value)
        guard.refusal = grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(kilolayer.AccessDenied, match="is not allowed to do this, and a new one could not be read"):
            client.act([0, 0, 0], [0, 0])
        path.write_text("second")
        client.act([0, 0, 0], [0, 0])
        guard.token, guard.refusal = "third", grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(kilolayer.AccessDenied, match="was not accepted; ask the server's operator"):
            client.act([0, 0, 0], [0, 0])


@pytest.mark.parametrize("address", ["10.0.0.5:1", "robot7:1", "policy.example.com:1", "127.0.0.1:1,10.0.0.5:1"])
def test_a_token_is_never_sent_over_a_network_in_plain_text(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    complaint = "must not be sent to .* in plain text, where others can read it: pass tls=True, or tls=kilolayer.Tls"
    for make in (kilolayer.PolicyClient, kilolayer.AsyncPolicyClient):
        with pytest.raises(ValueError, match=complaint) as refusal:
            make(address, token=SECRET)
        assert SECRET not in str(refusal.value)
    monkeypatch.setenv("KILOLAYER_TOKEN", SECRET)
    with pytest.raises(ValueError, match=complaint):
        kilolayer.PolicyClient(address)
    kilolayer.PolicyClient(address, tls=True, server_name="policy.example.com").close()


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/run/kilolayer.sock"])
def test_a_token_may_be_sent_in_plain_text_on_one_machine(address: str) -> None:
    assert Endpoint(address, timeout_s=1, token=SECRET).metadata() == (("authorization", f"Bearer {SECRET}"),)


def test_a_token_shows_where_it_is_from(path: Path) -> None:
    assert repr(Token(SECRET)) == "<Token>"
    assert repr(Token(path)) == f"<Token from {str(path)!r}>"
    assert SECRET not in repr(vars(Endpoint("localhost:1", timeout_s=1, token=SECRET)))
