"""Access: how a client proves who it is, and how it checks the server, from arguments or environment variables.

An argument that is given counts alone: its variables are then ignored. The variables of `tls` do not count for a Unix
socket.

    argument       variables
    tls            KILOLAYER_TLS=true or false; KILOLAYER_TLS_CA, and KILOLAYER_TLS_CLIENT_CERT and
                   KILOLAYER_TLS_CLIENT_KEY (paths)
    token          KILOLAYER_TOKEN_FILE (a path), or KILOLAYER_TOKEN
    server_name    KILOLAYER_SERVER_NAME
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Union

import grpc

from kilolayer._address import Address
from kilolayer._tls import Tls
from kilolayer._token import Token, TokenSource

TlsSetting = Union[Tls, bool, None]

# policy/command_line.py names the variables too, so that the server and training accept them in their environment.
_TLS = "KILOLAYER_TLS"
_TLS_FILES = {"ca": "KILOLAYER_TLS_CA", "cert": "KILOLAYER_TLS_CLIENT_CERT", "key": "KILOLAYER_TLS_CLIENT_KEY"}
_TOKEN, _TOKEN_FILE = "KILOLAYER_TOKEN", "KILOLAYER_TOKEN_FILE"
_SERVER_NAME = "KILOLAYER_SERVER_NAME"
_BOOLEANS = {"true": True, "false": False}
_NAME = re.compile(r"[A-Za-z0-9._:-]{1,253}")
_NAME_FOR_SOCKET = "localhost"  # versions of gRPC differ in what they compare a certificate with: some take the path
_TURN_ON_TLS = "pass tls=True, or tls=kilolayer.Tls(ca=...) if the server's certificate is from your own authority"


@dataclasses.dataclass(frozen=True)
class Access:
    """What a client needs to be let in, checked.

    Attributes:
        tls: None means plain text.
        credentials: of `tls`.
        token: None means none.
        server_name: the name that the server's certificate must have; empty means the host of the address.
    """

    tls: Tls | None
    credentials: grpc.ChannelCredentials | None = dataclasses.field(repr=False)
    token: Token | None
    server_name: str


def resolve_access(
    address: Address,
    *,
    tls: TlsSetting,
    token: TokenSource | None,
    server_name: str | None,
    environment: Mapping[str, str],
) -> Access:
    """Return the access to `address`.

    Raises:
        ValueError: a file or a value is wrong; a token would be sent over a network in plain text; `server_name` has no
            TLS to apply to, or is missing for several addresses with TLS.
    """
    is_socket = not address.hosts  # its server is on this machine, and seldom has a certificate
    chosen_tls = _tls(tls, {} if is_socket else environment)
    chosen_token = _token(token, environment)
    name = _server_name(server_name, environment, has_tls=chosen_tls is not None)
    if chosen_token is not None and chosen_tls is None and not address.is_local:
        raise ValueError(
            f"a token must not be sent to {address.text} in plain text, where others can read it: {_TURN_ON_TLS}, or"
            " remove the token (KILOLAYER_TOKEN_FILE, KILOLAYER_TOKEN)"
        )
    if chosen_tls is not None and len(address.hosts) > 1 and not name:
        raise ValueError(
            "several addresses with TLS need server_name (KILOLAYER_SERVER_NAME), a name that the certificate of every"
            " server has"
        )
    if chosen_tls is not None and is_socket and not name:
        name = _NAME_FOR_SOCKET
    return Access(chosen_tls, chosen_tls.credentials() if chosen_tls else None, chosen_token, name)


def _tls(setting: TlsSetting, environment: Mapping[str, str]) -> Tls | None:
    if isinstance(setting, bool):
        return Tls() if setting else None
    if isinstance(setting, Tls):
        return setting
    if setting is not None:
        raise ValueError(f"tls must be True, False or kilolayer.Tls(...), got {type(setting).__name__}")
    files = {field: environment[name] for field, name in _TLS_FILES.items() if environment.get(name)}
    switch = environment.get(_TLS, "")
    if switch and switch.lower() not in _BOOLEANS:
        raise ValueError(f"{_TLS} must be true or false, got {switch!r}")
    return Tls(**files) if _BOOLEANS.get(switch.lower(), bool(files)) else None


def _token(source: TokenSource | None, environment: Mapping[str, str]) -> Token | None:
    if source is not None:
        return Token(source)
    if environment.get(_TOKEN_FILE):
        return Token(Path(environment[_TOKEN_FILE]), name=_TOKEN_FILE)
    return Token(environment[_TOKEN]) if environment.get(_TOKEN) else None


def _server_name(given: object, environment: Mapping[str, str], *, has_tls: bool) -> str:
    if given is None:
        given = environment.get(_SERVER_NAME, "") if has_tls else ""
    elif not has_tls:
        raise ValueError(f"server_name is the name that a certificate must have, so it needs TLS: {_TURN_ON_TLS}")
    if given == "":
        return ""
    if not isinstance(given, str) or not _NAME.fullmatch(given):
        raise ValueError(
            "server_name (KILOLAYER_SERVER_NAME) must be a host name without a port, as in the server's certificate,"
            f" such as policy.example.com, got {given!r:.300}"
        )
    return given
