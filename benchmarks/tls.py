"""Measure what TLS costs one caller, and many: the same server with TLS and in plain text, in turns.

    python benchmarks/tls.py --json tls.json

Both servers (`serving/run.py` with a random policy) and the load generator (`_serve_load.py`) are separate processes on
this machine. Connections are open before a load begins, so handshakes are not measured.
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Any

import _record
import trustme
import tyro
from _serve_policies import publish
from _serve_processes import ServerSettings, load_generator, running, server_command
from _serve_record import load_summaries
from _serve_rows import Bench, Outcome
from _serve_stats import failed, median_ratio


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure what TLS costs."""

    json: Path | None = None
    """File for the record."""
    depth: int = 4
    """Depth of the policy."""
    width: int = 256
    """Width of the policy."""
    callers: int = 32
    """Number of concurrent callers, beside the load of a single one."""
    rounds: int = 7
    """Number of rounds in which the two servers take turns. Figures are medians over rounds."""
    seconds: float = 3.0
    """Duration of each load in a round, in seconds."""
    quick: bool = False
    """Short rounds: checks that the script works; the figures mean nothing."""


def main() -> None:
    """Measure, and write the record."""
    options = tyro.cli(Options)
    if options.quick:
        options = dataclasses.replace(options, width=16, rounds=2, seconds=0.3)
    about = _record.machine()
    with tempfile.TemporaryDirectory(prefix="kilolayer-tls-") as folder:
        rows, details = measure(options, Path(folder))
    notes = f"depth {options.depth}, width {options.width}; medians of {options.rounds} rounds of {options.seconds:g} s"
    _record.report("what TLS costs", rows, about=about, json_file=options.json, notes=notes, details=details)


def measure(options: Options, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run every load; return the rows of the table, and the other entries of the record."""
    sizes = {"state_dim": 29, "goal_dim": 2}  # as in the ant environment
    policy = publish(folder, options.depth, width=options.width, action_dim=8, **sizes)
    encrypted = ServerSettings(tls_cert=folder / "server.pem", tls_key=folder / "server.key")
    ca = write_certificates(encrypted, folder)
    commands = [server_command(policy.folder, each) for each in (ServerSettings(), encrypted)]
    rows: list[dict[str, Any]] = []
    with (
        load_generator() as generator,
        running("plain text", commands[0], folder=folder) as plain,
        running("TLS", commands[1], folder=folder) as encrypted_server,
    ):
        tls = dataclasses.replace(encrypted_server, ca=str(ca))
        bench = Bench(
            generator,
            plain,
            **sizes,
            rounds=options.rounds,
            seconds=options.seconds,
            warm_s=options.seconds / 5,
            phases=[],
        )
        for callers in (1, options.callers):
            load = {"mode": "closed", "callers": callers, "channels": callers}
            outcomes = bench.take_turns(plain, tls, f"{callers} callers", **load)
            rows += [
                row(callers, figure, *([read(each, figure) for each in results] for results in outcomes))
                for figure in ("p50, us", "p99, us", "requests/s")
            ]
            if fails := sum(failed(each) for results in outcomes for each in results):
                raise SystemExit(f"{fails} calls of {callers} callers failed")
    return rows, {"loads": load_summaries(bench.phases)}


def read(outcome: Outcome, figure: str) -> float:
    """Return a figure of one load."""
    return outcome["answered_per_s"] if figure == "requests/s" else outcome["latency_us"][figure.removesuffix(", us")]


def row(callers: int, figure: str, plain: list[float], tls: list[float]) -> dict[str, Any]:
    """Return a row of the table, with the median of the ratios of the rounds."""
    return {
        "callers": callers,
        "figure": figure,
        "plain text": statistics.median(plain),
        "TLS": statistics.median(tls),
        "ratio": median_ratio(tls, plain),
    }


def write_certificates(settings: ServerSettings, folder: Path) -> Path:
    """Write the certificate and the key of `settings`, and return the file of their authority."""
    assert settings.tls_cert
    assert settings.tls_key
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    identity = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.ECDSA)
    identity.private_key_pem.write_to_path(settings.tls_key)
    settings.tls_cert.write_bytes(b"".join(each.bytes() for each in identity.cert_chain_pems))
    ca = folder / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    return ca


if __name__ == "__main__":
    main()
