"""Where a server keeps files by default, in folders of the user: its admin socket, its state, copies of policies."""

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from serving.sockets import Address, TcpAddress, UnixAddress

_HASH_LENGTH = 8  # hex digits, to tell sockets of one name in several folders apart
_ENDPOINTS = ("AWS_ENDPOINT", "GOOGLE_BASE_URL")  # how the variables begin


def server_name(address: Address) -> str:
    """Return the name of a server in these folders: its port, or its socket's name with a hash of the whole path."""
    if isinstance(address, TcpAddress):
        return str(address.port)
    digest = hashlib.sha256(os.fsencode(address.path)).hexdigest()
    return f"{address.path.name}-{digest[:_HASH_LENGTH]}"


def admin_address(address: Address, environ: Mapping[str, str] = os.environ) -> UnixAddress:
    """Return the admin socket of the server at `address`: in $XDG_RUNTIME_DIR/kilolayer, or in a temporary folder."""
    runtime = Path(environ.get("XDG_RUNTIME_DIR", ""))
    # Other users write to the folder of temporary files, too, so the socket needs a folder of its own there.
    temporary = Path(tempfile.gettempdir()) / f"kilolayer-{os.geteuid()}"
    folder = runtime / "kilolayer" if runtime.is_absolute() and _is_own_folder(runtime) else temporary
    return UnixAddress(folder / f"admin-{server_name(address)}.sock")


def find_admin_address(address: Address, environ: Mapping[str, str] = os.environ) -> UnixAddress:
    """Return the admin socket of a running server, whose environment may differ: not every login sets the variable."""
    usual = admin_address(address, environ)
    others = ({"XDG_RUNTIME_DIR": f"/run/user/{os.geteuid()}"}, {})
    candidates = (usual, *(admin_address(address, other) for other in others))
    return next((each for each in candidates if _is_own_folder(each.path.parent) and each.path.is_socket()), usual)


def state_folder(address: Address, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for the state of the server at `address` (XDG Base Directory Specification)."""
    return _folder(environ, "XDG_STATE_HOME", default=".local/state") / "kilolayer" / server_name(address)


def copies_folder(url: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for copies of the policies at `url`, such as s3://bucket/run. All servers of the user share it.

    An address means another bucket at another endpoint, so the folder's name depends on the variables that set one.
    """
    endpoints = sorted(item for item in environ.items() if item[0].startswith(_ENDPOINTS))
    digest = hashlib.sha256(repr((url, endpoints)).encode()).hexdigest()
    name = f"{url.split('/')[2]}-{digest[:_HASH_LENGTH]}"
    return _folder(environ, "XDG_CACHE_HOME", default=".cache") / "kilolayer" / "policies" / name


def _folder(environ: Mapping[str, str], variable: str, *, default: str) -> Path:
    """Return a folder of the XDG Base Directory Specification."""
    named = Path(environ.get(variable, ""))
    return named if named.is_absolute() else _home() / default  # a relative path must be ignored


def _is_own_folder(path: Path) -> bool:
    """Return whether `path` is a folder of this user: after `sudo`, the variable may name that of another one."""
    try:
        about = path.stat()
    except OSError:  # there is none, or it cannot be searched
        return False
    return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid()


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # the user has none; then the folder usually cannot be written, which the server logs
        return Path("/")
