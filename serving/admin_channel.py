"""The connection of kilolayer-admin: to a Unix socket, or to a port with TLS and a token."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from serving.sockets import Address, TcpAddress

if TYPE_CHECKING:
    import grpc

_OF_PORT = ("tls_ca", "tls_cert", "tls_key", "server_name", "token_file")
# What gRPC says when it cannot connect, and what that means.
_CAUSES = (
    ("Hostname Verification", "its certificate is for another name; --server-name NAME says which one is right"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate has expired, or is not signed by the authority of --tls-ca FILE"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS"),
    (
        "ocket closed",
        "it has refused the connection, for example because it wants a certificate: --tls-cert, --tls-key",
    ),
    ("onnection refused", "no program listens there; the server's ready line has the address after admin="),
)


class ChannelError(Exception):
    """The options of a connection are not allowed, or a file cannot be used. The message is one line."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for a port to the command line."""
    texts = {
        "--tls-ca": ("FILE", "with a port: certificates of the authority of the server's (default: those of gRPC)"),
        "--tls-cert": ("FILE", "with a port: certificate of this client, if the server wants one"),
        "--tls-key": ("FILE", "with a port: its key"),
        "--server-name": ("NAME", "with a port: the name in the server's certificate, if it is not the host"),
        "--token-file": ("FILE", "with a port: file with a token that has the role admin"),
    }
    for name, (metavar, text) in texts.items():
        parser.add_argument(name, metavar=metavar, help=text)


def check(parsed: argparse.Namespace, address: Address) -> None:
    """Check the options.

    Raises:
        ChannelError: one is missing, or has no effect.
    """
    given = ["--" + name.replace("_", "-") for name in _OF_PORT if getattr(parsed, name) is not None]
    if given and not isinstance(address, TcpAddress):
        raise ChannelError(f"{given[0]} goes with --admin HOST:PORT; a Unix socket needs no TLS and no token")
    if isinstance(address, TcpAddress) and parsed.token_file is None:
        raise ChannelError(f"--admin {address} is a port, which needs a token: add --token-file FILE")
    if (parsed.tls_cert is None) != (parsed.tls_key is None):
        raise ChannelError("--tls-cert and --tls-key go together: a certificate and its key")


def connect(parsed: argparse.Namespace) -> "grpc.Channel":
    """Return a channel to `parsed.address`.

    Raises:
        ChannelError: a file cannot be read.
    """
    import grpc

    address: Address = parsed.address
    if not isinstance(address, TcpAddress):
        return grpc.insecure_channel(address.uri)
    credentials = grpc.ssl_channel_credentials(
        _content(parsed.tls_ca, "--tls-ca"),
        _content(parsed.tls_key, "--tls-key"),
        _content(parsed.tls_cert, "--tls-cert"),
    )
    # A proxy of the environment is for the web, and must not carry this.
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
    if parsed.server_name:
        options.append(("grpc.ssl_target_name_override", parsed.server_name))
    return grpc.secure_channel(str(address), credentials, options)


def metadata(parsed: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    """Return what authorizes a call.

    Raises:
        ChannelError: the file of the token cannot be used.
    """
    raw = _content(parsed.token_file, "--token-file")
    if raw is None:
        return ()
    token = raw.decode("latin-1").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ChannelError(f"--token-file {parsed.token_file} must have one token, in one line")
    return (("authorization", f"Bearer {token}"),)


def cause(details: str) -> str:
    """Return why the server at a port cannot be reached, from what gRPC says about it."""
    return next((text for mark, text in _CAUSES if mark in details), "it does not answer, or its host does not resolve")


def _content(path: str | None, flag: str) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ChannelError(f"{flag} {path} cannot be read: {error.strerror}") from error
