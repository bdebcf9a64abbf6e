"""The ports of several workers, which the supervisor holds so that no other program takes them."""

import contextlib
import dataclasses
from collections.abc import Generator
from contextlib import contextmanager

from serving.config import ServeConfig
from serving.sockets import TcpAddress, hold_port


@contextmanager
def held_ports(config: ServeConfig) -> Generator[ServeConfig]:
    """Hold the ports that `config` names; yield it with their numbers.

    Raises:
        StartupError: a port cannot be bound.
    """
    assert isinstance(config.address, TcpAddress), "the configuration refuses workers on a Unix socket"
    with contextlib.ExitStack() as stack:
        address, http_port = stack.enter_context(hold_port(config.address)), None
        if config.http_address:
            http_port = stack.enter_context(hold_port(config.http_address, flag="--http-port")).port
        yield dataclasses.replace(config, listen=str(address), http_port=http_port)
