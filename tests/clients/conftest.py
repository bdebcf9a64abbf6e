from __future__ import annotations  # for Python 3.9

from collections.abc import Iterator

import pytest

import kilolayer
from tests.clients.fakes import FakePolicy, closed_address, start_server


@pytest.fixture
def fake() -> FakePolicy:
    return FakePolicy()


@pytest.fixture
def address(fake: FakePolicy) -> Iterator[str]:
    server, port = start_server(fake)
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address without a server."""
    with closed_address() as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[kilolayer.PolicyClient]:
    with kilolayer.PolicyClient(address, timeout_s=60) as client:
        yield client
