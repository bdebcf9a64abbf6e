"""kilolayer-admin and an admin server at a port: TLS, the token, and why a connection is refused."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving import admin, admin_channel
from serving.access.tls import Certificates
from serving.access.token_watch import TokenWatch
from serving.api.admin_server import AdminServer
from serving.errors import StartupError
from serving.sockets import TcpAddress
from tests.serving.access.authority import Authority, write
from tests.serving.access.token_samples import secret
from tests.serving.decisions import Decisions

Run = Callable[[str], Awaitable[tuple[int, str, str]]]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def tokens_of_console(folder: Path) -> TokenWatch:
    """The token of an operator, in a file of its own."""
    path = folder / "tokens.toml"
    path.write_text(f'[tokens.console]\ntoken = "{secret("console")}"\nroles = ["admin"]\n')
    return TokenWatch(path)


@pytest.fixture
async def port(tmp_path: Path, authority: Authority) -> AsyncGenerator[str]:
    """The address of an admin server that wants certificates of clients; files for a client are in the folder."""
    files = write(tmp_path, authority.sign(), client_ca=authority.cert)
    operator = authority.sign("operator")
    (tmp_path / "operator.pem").write_bytes(operator.cert)
    (tmp_path / "operator.key").write_bytes(operator.key)
    (tmp_path / "other.pem").write_bytes(Authority().cert)
    (tmp_path / "token").write_text(f"{secret('console')}\n")
    decisions = Decisions(tmp_path / "policies", "ant")
    await decisions.restore()
    server = AdminServer(
        decisions.deployment,
        TcpAddress("127.0.0.1", 0),
        tokens=tokens_of_console(tmp_path),
        certificates=Certificates(files),
        drain=lambda: None,
        collectors=CollectorRegistry(),
    )
    await server.start()
    yield server.addresses()["admin"]
    await server.stop()


@pytest.fixture
def run(port: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command for that server; return its exit code, and what it printed to stdout and to stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # it must not be used

    async def run_command(options: str) -> tuple[int, str, str]:
        words = ["status", "--admin", port, *options.split()]
        code = await asyncio.to_thread(admin.main, words)
        printed, error = capsys.readouterr()
        return code, printed, error

    return run_command


async def test_an_operator_with_a_certificate_and_a_token(run: Run) -> None:
    options = "--tls-ca ca.pem --tls-cert operator.pem --tls-key operator.key --token-file token"
    code, printed, error = await run(options)
    assert (code, error) == (0, "")
    assert printed.startswith("POLICY  LIVE")
    code, _, error = await run(f"{options} --server-name other.example")
    assert code == 1
    assert error.endswith(": its certificate is for another name; --server-name NAME says which one is right\n")


REFUSED = [
    (
        "--tls-ca ca.pem",
        "it has refused the connection, for example because it wants a certificate: --tls-cert, --tls-key",
    ),
    (
        "--tls-ca other.pem --tls-cert operator.pem --tls-key operator.key",
        "its certificate has expired, or is not signed by the authority of --tls-ca FILE",
    ),
]


@pytest.mark.parametrize(("options", "cause"), REFUSED)
async def test_a_refused_connection_names_the_cause(run: Run, port: str, options: str, cause: str) -> None:
    assert await run(f"{options} --token-file token") == (1, "", f"error: cannot connect to {port}: {cause}\n")


def test_the_token_is_sent_as_a_bearer_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    parsed = admin.parse(["status", "--admin", "a:1", "--token-file", str(tmp_path / "token")])
    assert admin_channel.metadata(parsed) == (("authorization", "Bearer secret"),)


@pytest.mark.parametrize("content", ["", "two words", "two\nlines", "\u00e9"])
async def test_a_file_without_a_token_is_one_line(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "bad").write_text(content)
    assert await run("--token-file bad") == (1, "", "error: --token-file bad must have one token, in one line\n")


async def test_a_missing_file_is_one_line(run: Run) -> None:
    missing = "error: --tls-ca nowhere cannot be read: No such file or directory\n"
    assert await run("--tls-ca nowhere --token-file token") == (1, "", missing)


async def test_a_port_that_is_taken_is_one_line(port: str, tmp_path: Path, authority: Authority) -> None:
    host, number = port.split(":")
    server = AdminServer(
        Decisions(tmp_path / "others", "ant").deployment,
        TcpAddress(host, int(number)),
        tokens=tokens_of_console(tmp_path),
        certificates=Certificates(write(tmp_path, authority.sign())),
        drain=lambda: None,
        collectors=CollectorRegistry(),
    )
    with pytest.raises(
        StartupError, match=f"^cannot bind --admin {port}: address in use; choose another port with --ad"
    ):
        await server.start()
