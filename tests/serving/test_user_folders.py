"""The default places of a server's admin socket and state."""

import os
import socket
import tempfile
from pathlib import Path

import pytest

from serving.sockets import Address, TcpAddress, UnixAddress
from serving.user_folders import admin_address, find_admin_address, server_name, state_folder

PORT = TcpAddress("0.0.0.0", 50051)
SOCKET = UnixAddress(Path("/run/robots/act.sock"))


def test_a_server_is_named_after_its_port_or_its_socket() -> None:
    assert server_name(PORT) == "50051"
    # printf /run/robots/act.sock | sha256sum
    assert server_name(SOCKET) == "act.sock-2eebac23"


def test_sockets_of_one_name_in_two_folders_have_two_names() -> None:
    assert server_name(UnixAddress(Path("/a/act.sock"))) != server_name(UnixAddress(Path("/b/act.sock")))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(folder))
    return folder


def test_the_admin_socket_is_in_the_runtime_folder_of_the_user(tmp_path: Path, temporary: Path) -> None:
    address = admin_address(PORT, {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert str(address) == f"unix:{tmp_path}/kilolayer/admin-50051.sock"


@pytest.mark.parametrize("environ", [{}, {"XDG_RUNTIME_DIR": "."}, {"XDG_RUNTIME_DIR": "/nowhere/run"}])
def test_without_one_it_is_in_a_temporary_folder_of_the_user(temporary: Path, environ: dict[str, str]) -> None:
    assert str(admin_address(PORT, environ)) == f"unix:{temporary}/kilolayer-{os.geteuid()}/admin-50051.sock"


def test_the_runtime_folder_of_another_user_is_not_used(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sudo` may keep the variable, and root could write there: the other user's server could not any more."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    address = admin_address(PORT, {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert str(address) == f"unix:{temporary}/kilolayer-12345/admin-50051.sock"


def test_the_socket_of_a_server_with_another_environment_is_found(tmp_path: Path, temporary: Path) -> None:
    """A server that a system started, and a login that sets the variable."""
    login = {"XDG_RUNTIME_DIR": str(tmp_path)}
    assert find_admin_address(PORT, login) == admin_address(PORT, login), "there is none: the usual place"
    of_server = admin_address(PORT, {})
    of_server.path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(of_server.path))
        assert find_admin_address(PORT, login) == of_server


@pytest.mark.parametrize(
    ("environ", "address", "folder"),
    [
        ({"XDG_STATE_HOME": "/var/state"}, PORT, "/var/state/kilolayer/50051"),
        ({"XDG_STATE_HOME": "relative"}, PORT, "/home/ann/.local/state/kilolayer/50051"),
        ({}, SOCKET, f"/home/ann/.local/state/kilolayer/{server_name(SOCKET)}"),
    ],
)
def test_the_state_is_in_the_users_state_folder(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], address: Address, folder: str
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert str(state_folder(address, environ)) == folder


def test_a_user_without_a_home_folder_gets_a_path_that_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert state_folder(PORT, {}) == Path("/.local/state/kilolayer/50051")


def test_the_servers_of_the_tests_keep_out_of_the_folders_of_the_user(user_folders: Path, states: Path) -> None:
    assert state_folder(PORT) == states / "kilolayer/50051"
    assert states.parent == user_folders
    assert admin_address(PORT).path == user_folders / "kilolayer/admin-50051.sock"
    assert not user_folders.is_relative_to(Path.home())
