"""Why a port cannot be bound."""

import errno
import os
import socket
from collections.abc import Callable

import pytest

from serving.errors import StartupError
from serving.sockets import TcpAddress, bind_error, hold_port, listening_socket


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        address = TcpAddress("127.0.0.1", port)
        expected = f"cannot bind --listen {address}: address in use; choose another port with --listen, or 0 for"
        assert str(bind_error("--listen", address)).startswith(expected)
        expected = f"cannot bind --metrics-port {port} on 127.0.0.1: address in use; choose another port with --metrics"
        assert str(bind_error("--metrics-port", address)).startswith(expected)


def test_a_name_that_no_host_can_have_is_named() -> None:
    with pytest.raises(
        StartupError, match="^the host a+ of --listen does not resolve to an address .not a valid name.; use 127"
    ):
        hold_port(TcpAddress("a" * 70, 50051)).__enter__()


def test_a_host_that_does_not_resolve_is_named_and_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        StartupError, match="^the host nowhere of --listen does not resolve to an address .Name or service not known"
    ):
        hold_port(TcpAddress("nowhere", 50051)).__enter__()


def test_an_address_of_another_machine_is_named() -> None:
    # 192.0.2.1 is an address of RFC 5737: never a machine's
    expected = "^the host 192.0.2.1 of --listen is not an address of this machine; use 127.0.0.1"
    with pytest.raises(StartupError, match=expected):
        hold_port(TcpAddress("192.0.2.1", 0)).__enter__()


def refuse_with(number: int) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, "cannot bind --listen 127.0.0.1:80: not permitted; ports below 1024 usually need root; choose"),
        (errno.EMFILE, "cannot bind --listen 127.0.0.1:80: too few file descriptors"),
        (errno.ENOBUFS, f"cannot bind --listen 127.0.0.1:80: {os.strerror(errno.ENOBUFS)}; choose another port"),
    ],
)
def test_other_causes_are_named(monkeypatch: pytest.MonkeyPatch, number: int, expected: str) -> None:
    monkeypatch.setattr(socket.socket, "bind", refuse_with(number))
    with pytest.raises(StartupError) as error:
        hold_port(TcpAddress("127.0.0.1", 80)).__enter__()
    assert str(error.value).startswith(expected)


def test_a_port_is_listened_on_once_unless_it_is_shared() -> None:
    free = TcpAddress("127.0.0.1", 0)
    address, alone = listening_socket("--http-port", free, share_port=False)
    with alone, pytest.raises(StartupError, match=rf"^cannot bind --http-port .*\b{address.port}\b.*: address in use"):
        listening_socket("--http-port", address, share_port=True)
    with hold_port(free, flag="--http-port") as held:
        first, second = (listening_socket("--http-port", held, share_port=True) for _ in range(2))
        assert first[0] == second[0] == held
        for _, shared in (first, second):
            shared.close()


def test_a_held_port_is_named_after_its_flag() -> None:
    with (
        hold_port(TcpAddress("127.0.0.1", 0)) as address,
        pytest.raises(StartupError, match=rf"^cannot bind --http-port .*\b{address.port}\b.*: address in use"),
        hold_port(address, flag="--http-port"),
    ):
        pass
