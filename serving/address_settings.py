"""The settings of addresses: what they mean, and which combinations are impossible."""

from typing import NamedTuple, Protocol

from serving.sockets import MAX_PORT, Address, AddressError, TcpAddress, UnixAddress, parse_address

LOCALHOST = "127.0.0.1"
AUTO = "auto"
"""The value of --admin for a Unix socket that the server chooses."""

_OFF = "off"
_MAX_WORKERS = 256


class AddressSettings(Protocol):
    """The settings of addresses, as `ServeConfig` has them."""

    @property
    def address(self) -> Address: ...  # noqa: D102  as ServeConfig says
    @property
    def listen(self) -> str: ...  # noqa: D102
    @property
    def admin(self) -> str: ...  # noqa: D102
    @property
    def http_port(self) -> int | None: ...  # noqa: D102
    @property
    def metrics_port(self) -> int: ...  # noqa: D102
    @property
    def workers(self) -> int: ...  # noqa: D102


class Addresses(NamedTuple):
    """The addresses that the settings name."""

    listen: Address
    admin: Address | None  # None: --admin names none


def parse(settings: AddressSettings) -> Addresses:
    """Return the addresses that the settings name.

    Raises:
        AddressError: a text is no address; the message begins with the flag.
    """
    try:
        listen = settings.address
    except AddressError as error:
        raise AddressError(f"--listen {error}") from error
    try:
        return Addresses(listen, None if settings.admin in (AUTO, _OFF) else _admin_address(settings.admin))
    except AddressError as error:
        raise AddressError(f"--admin {error}") from error


def http_address(settings: AddressSettings) -> TcpAddress | None:
    """Return the address for HTTP; None: there is none."""
    if settings.http_port is None:
        return None
    address = settings.address
    return TcpAddress(address.host if isinstance(address, TcpAddress) else LOCALHOST, settings.http_port)


def impossible(settings: AddressSettings, found: Addresses) -> str:
    """Return what is wrong with a combination of settings, in one line; empty if nothing is.

    Args:
        settings: of addresses.
        found: the addresses that they name.
    """
    if found.admin == found.listen:
        return f"--admin must differ from --listen, got {found.admin} for both; leave out --admin"
    return _port_problem(settings, found.listen) or _workers_problem(settings, found.listen)


def _port_problem(settings: AddressSettings, listen: Address) -> str:
    metrics, http = settings.metrics_port, settings.http_port
    if not 0 <= metrics <= MAX_PORT:
        return f"--metrics-port must be from 0 to {MAX_PORT}, got {metrics}; 0 picks a free port"
    if isinstance(listen, TcpAddress) and listen.port == metrics != 0:
        return f"--metrics-port must differ from the port of --listen, got {metrics} for both; 0 picks a free port"
    if http is None:
        return ""
    if not 0 <= http <= MAX_PORT:
        return f"--http-port must be from 0 to {MAX_PORT}, got {http}; 0 picks a free port"
    others = {"--metrics-port": metrics}
    if isinstance(listen, TcpAddress):
        others["the port of --listen"] = listen.port
    for name, other in others.items():
        if http == other != 0:
            return f"--http-port must differ from {name}, got {http} for both; 0 picks a free port"
    return ""


def _workers_problem(settings: AddressSettings, listen: Address) -> str:
    if not 1 <= settings.workers <= _MAX_WORKERS:
        return f"--workers must be from 1 to {_MAX_WORKERS}, got {settings.workers}; use at most one for each core"
    if settings.workers > 1 and isinstance(listen, UnixAddress):
        return (
            f"--workers {settings.workers} needs a port, because gRPC cannot share a Unix socket between processes, got"
            f" --listen {settings.listen}; use --listen 127.0.0.1:50051, or leave out --workers"
        )
    return ""


def _admin_address(text: str) -> Address:
    """Return the address that --admin names. Raises AddressError if it names none."""
    if not text.startswith("unix:") and ":" not in text:
        raise AddressError(f"must be unix:PATH, HOST:PORT, auto or off, got {text!r}")
    return parse_address(text)
