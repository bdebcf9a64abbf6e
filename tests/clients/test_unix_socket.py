"""Clients of a server at a Unix socket."""

from __future__ import annotations  # for Python 3.9

import urllib.parse
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

import kilolayer
from kilolayer.v1 import policy_pb2_grpc
from tests.clients.fakes import FakePolicy


@pytest.fixture(params=["act.sock", "50%41 #1?.sock"])
def path(request: pytest.FixtureRequest, fake: FakePolicy, tmp_path: Path) -> Iterator[Path]:
    """The path at which a server listens."""
    path = tmp_path / request.param
    server = grpc.server(futures.ThreadPoolExecutor(2))
    policy_pb2_grpc.add_PolicyServicer_to_server(fake, server)
    server.add_insecure_port("unix:" + urllib.parse.quote(str(path)))
    server.start()
    assert path.is_socket()
    yield path
    server.stop(0).wait()


def test_a_client_takes_the_path_literally(path: Path) -> None:
    with kilolayer.PolicyClient(f"unix:{path}", timeout_s=60) as client, client.stream() as stream:
        assert client.act([0.5, 0, 0], [0, 0]).action.tolist() == [1, 0]
        assert stream.act([0.25, 0, 0], [0, 0]).action.tolist() == [0.5, 0]


async def test_an_async_client_takes_the_home_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(path.parent))
    async with kilolayer.AsyncPolicyClient(f"unix:~/{path.name}", timeout_s=60) as client:
        assert (await client.act([0.5, 0, 0], [0, 0])).action.tolist() == [1, 0]


def test_a_socket_that_is_not_there_is_unavailable_immediately(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/act.sock"
    missing = pytest.raises(kilolayer.Unavailable, match=f"Act at {address} failed .*No such file or directory")
    with kilolayer.PolicyClient(address, timeout_s=60) as client, missing:
        client.act([0, 0, 0], [0, 0])
