"""What a failed connection means: gRPC's own words, which name a step of a handshake, to a cause and an advice."""

from __future__ import annotations

import dataclasses
import re
from typing import Callable

Explanation = tuple[str, str]  # the likely cause, and what to do; empty if that depends on the method


@dataclasses.dataclass(frozen=True)
class Security:
    """How a client secures its connection."""

    has_tls: bool
    has_own_ca: bool  # whether the client was given the authorities that it trusts
    name: str  # that the server's certificate must have


def explain(details: str, security: Security) -> Explanation | None:
    """Return why a connection failed, by the `details` of an UNAVAILABLE call; None if they say enough themselves."""
    return next((each(details, security) for pattern, each in _EXPLANATIONS if pattern.search(details)), None)


def is_unreachable(details: str) -> bool:
    """Return whether no server was found, by gRPC's `details` of an UNAVAILABLE call."""
    return _UNREACHABLE.search(details) is not None


def _untrusted(details: str, security: Security) -> Explanation:
    """Return what is wrong with the server's certificate; old versions of gRPC say only that it was not accepted."""
    if "has expired" in details:
        return "the server's certificate has expired", "Renew it, or check this machine's clock"
    if "not yet valid" in details:
        return "the server's certificate is not valid yet", "Check this machine's clock"
    trusted = "those in Tls(ca=...)" if security.has_own_ca else "the public authorities that gRPC comes with"
    advice = "Pass the certificate of the server's authority as tls=kilolayer.Tls(ca=...)"
    if "issuer" in details or "self signed" in details or "self-signed" in details:
        return f"the server's certificate was not issued by {trusted}", advice
    return (
        f"the server's certificate was not accepted: it was not issued by {trusted}, or it has expired",
        f"{advice}, renew it, or check this machine's clock",
    )


def _other_name(_details: str, security: Security) -> Explanation:
    return (
        f"the server's certificate is not for {security.name}",
        "Use an address with a name in the certificate, or pass one of its names as server_name",
    )


def _plain_server(_details: str, _security: Security) -> Explanation:
    return (
        "the client uses TLS, and no TLS server answers at the address",
        "Start the server with a certificate (--tls-cert and --tls-key), check the port, or pass tls=False",
    )


def _unknown_host(_details: str, _security: Security) -> Explanation:
    return "the host name is not known", "Check the name in the address, and this machine's network and DNS"


def _not_ready(_details: str, _security: Security) -> Explanation:
    return (
        "no server is ready, by its health service: it is starting, draining or broken",
        "",
    )


def _other_server(_details: str, _security: Security) -> Explanation:
    return "a server of another kind answers at the address", "Check the port: it must be that of gRPC"


def _unusable_pair(_details: str, _security: Security) -> Explanation:
    return "gRPC cannot use the client's certificate with its key", "Check that Tls.key is the key of Tls.cert"


def _no_address(details: str, security: Security) -> Explanation:
    """Return why gRPC has no address to connect to. Old versions also report an unusable certificate in this way."""
    if security.has_tls:
        return _unusable_pair(details, security)
    return "the address stands for no machine", "Check the name in the address, and this machine's network and DNS"


def _closed(_details: str, security: Security) -> Explanation:
    if security.has_tls:
        return (
            "the server closed the connection during the handshake: it may require a certificate of the client, or"
            " not accept the one that it got",
            "Pass the client's certificate and key as tls=kilolayer.Tls(ca=..., cert=..., key=...)",
        )
    return (
        "the server closed the connection before its first answer: it may require TLS",
        "Pass tls=kilolayer.Tls(ca=...), or tls=True if its certificate is from a public authority",
    )


_CONNECTING = "^(?:failed to connect to all addresses|connections to all backends failing)"
_UNRESOLVED = "^(?:DNS resolution failed|errors resolving)"
_UNREACHABLE = re.compile(f"{_UNRESOLVED}|{_CONNECTING}(?!.*backend unhealthy)")
_EXPLANATIONS: tuple[tuple[re.Pattern[str], Callable[[str, Security], Explanation]], ...] = (
    (re.compile("CERTIFICATE_VERIFY_FAILED"), _untrusted),
    (re.compile("Hostname Verification Check failed|is not in peer certificate"), _other_name),
    (re.compile("WRONG_VERSION_NUMBER"), _plain_server),
    (re.compile("Failed to create security handshaker|Handshaker factory creation failed"), _unusable_pair),
    (re.compile("^empty address list"), _no_address),
    (re.compile(_UNRESOLVED), _unknown_host),
    (re.compile(f"{_CONNECTING}.*backend unhealthy"), _not_ready),
    (re.compile(rf"{_CONNECTING}.*(?:http1\.x|Failed parsing HTTP/2|(?i:settings frame))"), _other_server),
    # But not "Failed to connect to remote host: Connection reset", which is before any handshake.
    (
        re.compile(
            f"{_CONNECTING}(?!.*connect to remote host).*"
            "(?:Socket closed|Connection reset|Connection closed|recvmsg|Broken pipe|handshake failed)"
        ),
        _closed,
    ),
)
