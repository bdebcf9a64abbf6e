"""Which addresses need locks."""

import dataclasses
import re
import socket
from pathlib import Path

import pytest

from serving.command_line import parse
from serving.config import ServeConfig
from serving.errors import StartupError
from serving.lock_settings import TlsFiles, require_locks

CONFIG = ServeConfig(policies=(Path("a"),))
TLS = {"tls_cert": Path("c"), "tls_key": Path("k")}


def locks_of(config: ServeConfig) -> list[str]:
    """The warnings about the locks of a server with this configuration."""
    return require_locks(config, {"--listen": config.address})


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1", "unix:/a", "localhost:1"]
)
def test_plain_text_within_a_machine_needs_nothing(listen: str) -> None:
    assert locks_of(dataclasses.replace(CONFIG, listen=listen)) == []
    assert locks_of(dataclasses.replace(CONFIG, listen=listen, insecure=True)) == []


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"])
def test_plain_text_for_other_machines_needs_to_be_allowed(listen: str) -> None:
    config = dataclasses.replace(CONFIG, listen=listen)
    with pytest.raises(StartupError) as error:
        locks_of(config)
    assert str(error.value) == (
        f"--listen {listen} accepts plain text from other machines; encrypt connections with --tls-cert FILE and"
        " --tls-key FILE, as docs/security.md shows, or allow plain text with --insecure (KILOLAYER_INSECURE=true)"
    )
    assert locks_of(dataclasses.replace(config, insecure=True)) == [
        f"connections to {listen} are not encrypted, because --insecure allows plain text; on a network that others"
        " use, docs/security.md shows how to use TLS"
    ]
    assert locks_of(dataclasses.replace(config, **TLS)) == []
    assert locks_of(dataclasses.replace(config, **TLS, insecure=True)) == []


def test_a_name_counts_as_all_addresses_that_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 1)) for host in ("127.0.0.1", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_named: found)
    with pytest.raises(StartupError, match="--listen robot:1 accepts plain text from other machines"):
        locks_of(dataclasses.replace(CONFIG, listen="robot:1"))
    del found[1]
    assert locks_of(dataclasses.replace(CONFIG, listen="robot:1")) == []


def test_a_name_without_an_address_is_named() -> None:
    with pytest.raises(StartupError, match="the host nowhere.invalid of --listen does not resolve to an address"):
        locks_of(dataclasses.replace(CONFIG, listen="nowhere.invalid:1"))


def test_the_files_of_tls() -> None:
    assert CONFIG.tls is None
    assert dataclasses.replace(CONFIG, **TLS).tls == TlsFiles(Path("c"), Path("k"))
    mutual = dataclasses.replace(CONFIG, **TLS, tls_client_ca=Path("a"))
    assert mutual.tls == TlsFiles(Path("c"), Path("k"), Path("a"))


def test_the_image_allows_plain_text_and_shows_metrics_to_probes() -> None:
    dockerfile = (Path(__file__).parents[2] / "Dockerfile").read_text()
    config = parse([], dict(re.findall(r"(KILOLAYER_\w+)=(\S+)", dockerfile.split("FROM base AS runtime")[1])))
    assert (config.listen, config.metrics_host, config.metrics_port) == ("0.0.0.0:50051", "0.0.0.0", 9464)
    assert len(locks_of(config)) == 1
