"""A whole server with --tokens, and the admin address at a port."""

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from kilolayer.v1 import admin_pb2, policy_pb2
from kilolayer.v1.admin_pb2_grpc import PolicyAdminStub
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from serving import server as server_module
from serving.access import token_watch
from serving.access.token_watch import TokenWatch
from serving.api import admin_server, grpc_transport
from serving.api.admin_server import AdminServer
from serving.config import ServeConfig
from serving.errors import StartupError
from serving.loading import load
from serving.sockets import TcpAddress, UnixAddress
from tests.serving import in_process
from tests.serving.access import authority
from tests.serving.access.token_samples import bearer, secret
from tests.serving.batcher_bench import WaitUntil
from tests.serving.decisions import Decisions

NOWHERE = TcpAddress("127.0.0.1", 0)


def write(path: Path, **roles: str) -> Path:
    """A file with the token of each name, with one role."""
    tables = (f'[tokens.{name}]\ntoken = "{secret(name)}"\nroles = ["{role}"]\n' for name, role in roles.items())
    path.write_text("".join(tables))
    return path


async def test_a_server_takes_the_tokens_of_its_file_and_of_the_one_that_replaces_it(
    tmp_path: Path, policies: Path, monkeypatch: pytest.MonkeyPatch, wait_until: WaitUntil
) -> None:
    monkeypatch.setattr(token_watch, "POLL_S", 0.01)
    path = write(tmp_path / "tokens.toml", old="describe")
    config = ServeConfig(policies=(policies,), listen="127.0.0.1:0", metrics=False, max_batch_rows=1, tokens=path)
    codes: list[grpc.StatusCode] = []

    with in_process.served(config) as running:
        channel = grpc.insecure_channel(running.address)
        listing = PolicyStub(channel).List

        def code(name: str) -> grpc.StatusCode:
            return listing.future(policy_pb2.ListRequest(), metadata=bearer(name), timeout=10).code()

        codes += [code("old"), code("new")]
        write(tmp_path / "next.toml", new="describe").replace(path)
        await wait_until(lambda: code("old") is grpc.StatusCode.UNAUTHENTICATED)
        codes.append(code("new"))
        channel.close()
        assert running.sample("refused_total", reason="unknown") == 2
    assert codes == [grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.OK]


async def test_operators_need_a_token_with_the_role_at_a_port(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    decisions, collectors = Decisions(tmp_path / "policies", "ant"), CollectorRegistry()
    await decisions.restore()
    watch = TokenWatch(write(tmp_path / "tokens.toml", console="admin", robot="act"))
    server = AdminServer(decisions.deployment, NOWHERE, tokens=watch, drain=lambda: None, collectors=collectors)
    await server.start()
    address = server.addresses()["admin"]
    caplog.set_level("INFO")
    async with grpc.aio.insecure_channel(address) as channel:
        stub, codes = PolicyAdminStub(channel), list[str]()
        for metadata in ((), bearer("robot"), bearer("console")):
            call = stub.Switch(admin_pb2.SwitchRequest(policy="ant", version="1000"), metadata=metadata, timeout=10)
            codes.append((await call.code()).name)
    await server.stop()
    assert codes == ["UNAUTHENTICATED", "PERMISSION_DENIED", "OK"]
    assert [message for message in caplog.messages if "with the token console" in message]
    for cause in ("missing", "role"):
        labels = {"action": "(refused)", "outcome": cause}
        assert collectors.get_sample_value("kilolayer_admin_actions_total", labels) == 1


async def test_a_port_for_operators_closes_connections_beyond_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin_server, "max_connections", lambda: 4)  # of the process; one of them is for operators
    decisions, watch = Decisions(tmp_path / "policies", "ant"), TokenWatch(write(tmp_path / "t.toml", console="admin"))
    server = AdminServer(
        decisions.deployment, NOWHERE, tokens=watch, drain=lambda: None, collectors=CollectorRegistry()
    )
    await server.start()
    host, _, port = server.addresses()["admin"].rpartition(":")
    async with grpc.aio.insecure_channel(f"{host}:{port}") as channel, asyncio.timeout(60):
        code = await PolicyAdminStub(channel).Status(admin_pb2.StatusRequest(), timeout=10).code()
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await reader.read(1) == b""
        writer.close()
    await server.stop()
    assert code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(("admin", "left"), [("127.0.0.1:1", 1000 - 64), ("off", 1000)])
async def test_the_port_for_operators_has_connections_of_its_own(
    admin: str, left: int, tmp_path: Path, policies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def options(*, max_connections: int, **_: object) -> list[tuple[str, int]]:
        given.append(max_connections)
        return []

    monkeypatch.setattr(server_module, "max_connections", lambda: 1000)
    monkeypatch.setattr(grpc_transport, "server_options", options)
    files = authority.write(tmp_path, authority.Authority().sign())
    config = ServeConfig(
        policies=(policies,),
        listen="127.0.0.1:0",
        admin=admin,
        tokens=write(tmp_path / "tokens.toml", console="admin"),
        tls_cert=files.cert,
        tls_key=files.key,
    )
    await load(config, collectors=CollectorRegistry())
    assert given == [left]


def test_an_admin_port_without_tokens_is_refused(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path, "ant")
    with pytest.raises(StartupError, match=r"^--admin 127.0.0.1:0 is a port, which needs tokens; add --tokens FILE$"):
        AdminServer(decisions.deployment, NOWHERE, drain=lambda: None, collectors=CollectorRegistry())


async def test_at_a_unix_socket_operators_need_no_token(tmp_path: Path) -> None:
    decisions, address = Decisions(tmp_path / "policies", "ant"), UnixAddress(tmp_path / "admin.sock")
    await decisions.restore()
    watch = TokenWatch(write(tmp_path / "tokens.toml", console="admin"))
    server = AdminServer(
        decisions.deployment, address, tokens=watch, drain=lambda: None, collectors=CollectorRegistry()
    )
    await server.start()
    async with grpc.aio.insecure_channel(address.uri) as channel:
        status = await PolicyAdminStub(channel).Status(admin_pb2.StatusRequest(), timeout=10)
    await server.stop()
    assert [each.policy for each in status.policies] == ["ant"]
