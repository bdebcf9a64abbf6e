"""The port or Unix socket of a gRPC server, with TLS or without."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import grpc
import grpc.aio

from serving.access.tls import Certificates
from serving.errors import StartupError
from serving.sockets import Address, UnixAddress, bind_error, may_bind

if TYPE_CHECKING:
    from serving.access.pem import Pem


def bind(server: grpc.aio.Server, address: Address, *, certificates: Certificates | None, flag: str) -> Address:
    """Let `server` listen at `address`, and return it with the number of its port.

    Args:
        server: not started yet.
        address: to listen at. A Unix socket is never encrypted: only its user can connect.
        certificates: for TLS; None: plain text.
        flag: gives the address, for the message of an error.

    Raises:
        StartupError: the address cannot be bound.
    """
    if isinstance(address, UnixAddress):
        return _bind_unix(server, address)
    try:
        if certificates:
            port = server.add_secure_port(str(address), _credentials(certificates))
        else:
            port = server.add_insecure_port(str(address))
    except RuntimeError as error:
        raise bind_error(flag, address) from error
    return dataclasses.replace(address, port=port)


def _bind_unix(server: grpc.aio.Server, address: UnixAddress) -> UnixAddress:
    with may_bind(address):
        try:
            server.add_insecure_port(address.uri)
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {address}: gRPC cannot bind it; choose another path") from error
    return address


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Return what gRPC takes for TLS. It asks `certificates` before each handshake."""

    used = certificates.current

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        certificates.fetch()  # None if another port has taken up the change before
        if certificates.current is used:
            return None
        used = certificates.current
        return _configuration(used)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(used),
        cast("Callable[[], grpc.ServerCertificateConfiguration]", fetch),  # the published type leaves out the None
        certificates.requires_client_certificate,
    )


def _configuration(pem: "Pem") -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.cert)], pem.client_ca)
