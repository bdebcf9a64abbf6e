"""The admin address: a Unix socket in a folder that only its user can use."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.api.admin_server import AdminServer
from serving.errors import StartupError
from serving.sockets import UnixAddress
from tests.serving.admin_bench import Admin, started
from tests.serving.decisions import Decisions

REPOSITORY = Path(__file__).parents[2]


async def test_only_the_user_can_connect(admin: Admin) -> None:
    assert admin.server.addresses() == {"admin": f"unix:{admin.address.path}"}
    assert admin.address.path.lstat().st_mode == stat.S_IFSOCK | 0o600
    assert admin.address.path.parent.lstat().st_mode == stat.S_IFDIR | 0o700


async def test_the_file_is_gone_when_the_server_has_stopped(tmp_path: Path) -> None:
    async with started(tmp_path, "ant") as admin:
        assert admin.address.path.exists()
    assert list(admin.address.path.parent.iterdir()) == []


async def test_the_socket_of_a_killed_server_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "kilolayer").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "kilolayer/admin.sock"))
    async with started(tmp_path, "ant") as admin:
        assert (await admin.call("Status")).policies[0].live_version == "2000"


async def test_the_socket_of_a_living_server_is_refused_and_goes_on(tmp_path: Path, admin: Admin) -> None:
    second = Admin(tmp_path / "second", "bee", sockets=tmp_path)
    with pytest.raises(StartupError) as error:
        await second.server.start()
    assert str(error.value) == (
        f"--admin: cannot listen on {admin.address}: another program listens there; stop it, or choose another path;"
        " --admin off serves without this address"
    )
    await second.channel.close()
    assert len((await admin.call("Status")).policies) == 2


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
async def test_a_folder_that_others_can_use_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "kilolayer"
    if kind == "open to others":
        folder.mkdir()
        folder.chmod(0o750)
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to("elsewhere")
    else:
        folder.write_text("")
    server = Admin(tmp_path, "ant")
    with pytest.raises(StartupError, match=str(folder)):
        await server.server.start()
    await server.channel.close()
    assert not server.address.path.exists()


async def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    server = Admin(tmp_path, "ant", sockets=tmp_path / "nowhere")
    with pytest.raises(StartupError, match="^--admin: .* for the admin socket: No such file or directory; --admin off"):
        await server.server.start()
    await server.channel.close()


async def test_a_folder_that_the_operator_names_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    address = UnixAddress(folder / "a.sock")
    server = AdminServer(
        Decisions(tmp_path, "ant").deployment, address, drain=lambda: None, collectors=CollectorRegistry()
    )
    await server.start()
    assert address.path.lstat().st_mode == stat.S_IFSOCK | 0o600
    await server.stop()


def test_the_admin_server_and_the_supervisor_import_no_jax() -> None:
    """With --workers both are in one process, which would need memory and seconds for nothing."""
    program = "import sys, serving.api.admin_server, serving.workers.supervisor; print('jax' in sys.modules)"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout == "False\n", done.stderr
