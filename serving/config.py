"""ServeConfig: the settings of a server, complete and checked when constructed."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import tyro

from policy.command_line import NO_FLAG, flag, local_path
from serving import address_settings, lock_settings, user_folders
from serving.address_settings import AUTO, LOCALHOST
from serving.lock_settings import TlsFiles
from serving.policy_settings import (
    BucketUrl,
    NamedPath,
    PolicyPath,
    PolicySettings,
    Wanted,
    parse_policy,
    parse_versions,
    usable_path,
)
from serving.sockets import Address, AddressError, TcpAddress, parse_address

LogFormat = Literal["auto", "json", "text"]
OutOfRange = Literal["flag", "refuse"]
ServeWhen = Literal["first-batch", "all"]
_MAX_HELD_MB = 2**20
_MAX_STREAMS = 2**31 - 1  # of HTTP/2
_MAX_ROWS = 65536  # the server compiles an executable for every power of two up to --max-batch-rows

_MAX_KEPT = 16  # each has its parameters in memory, and on the device

PATHS = ("state_dir", "config", "tls_cert", "tls_key", "tls_client_ca", "tokens")
"""The settings that are the path of one file or folder."""

_DEVICE = re.compile(r"cpu|(gpu|tpu)(:\d{1,3})?")

_LOG_ROWS = tyro.conf.arg(metavar="SHARE DIR", help_behavior_hint="(default: no rows)")
_POLICIES = tyro.conf.arg(metavar="[NAME=]PATH ...", help_behavior_hint="(required)")
_VERSIONS = tyro.conf.arg(metavar="NAME=latest|best|N ...", help_behavior_hint="(default: latest)")
_STATE_DIR = tyro.conf.arg(
    metavar="DIR", help_behavior_hint="(default: $XDG_STATE_HOME/kilolayer/PORT or ~/.local/state/kilolayer/PORT)"
)
_FILE = tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")
_CONFIG = tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: no file)")
_TOKENS = tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: anyone may call)")
_HTTP_PORT = tyro.conf.arg(metavar="PORT", help_behavior_hint="(default: no port)")
_FOLLOW = tyro.conf.arg(help_behavior_hint="(default: policies with latest)")


class ConfigError(Exception):
    """A setting that is not allowed. The message names its flag, the value, what is allowed, and a value that works."""


def _parse_policy(words: list[str]) -> PolicyPath | NamedPath:
    try:
        return parse_policy(words[0])
    except ValueError as error:
        raise ConfigError(str(error)) from error


_PATH = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="[NAME=]PATH",
    instance_from_str=_parse_policy,
    is_instance=lambda value: isinstance(value, Path | BucketUrl | NamedPath),
    str_from_instance=lambda value: [f"{value.name}={value.path}" if isinstance(value, NamedPath) else str(value)],
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serve published policies over gRPC, with health checks and Prometheus metrics.

    The server loads the newest valid version of each policy and compiles it for every batch size. Then its health is
    SERVING. On SIGTERM or SIGINT it refuses new calls, answers the accepted ones, and exits with code 0.

    Every flag can also be set as an environment variable: KILOLAYER_ followed by the flag's name in capitals, for
    example KILOLAYER_MAX_BATCH_ROWS=64 or KILOLAYER_METRICS=false. KILOLAYER_POLICIES has one path a line. A flag
    overrides its variable. A leading ~ in a path stands for the home folder.

    Raises:
        ConfigError: a setting is out of range, or contradicts another one.
    """

    policies: Annotated[tuple[Annotated[PolicyPath | NamedPath, _PATH], ...], _POLICIES] = ()
    """Paths of published policies, at least one, such as runs/first/policies.
    Each is a folder with the versions of one policy, as training writes them, or one version in it, which then is the
    only one that is served. A NAME replaces the one that training gave the policy. With the extra `remote`, a path may
    be in a bucket, such as gs://bucket/first/policies or s3://bucket/first/policies."""

    versions: Annotated[tuple[str, ...], _VERSIONS] = ()
    """Version of a policy to serve: the latest one, the best one, or exactly the version N.
    The best one has the highest eval/stay of its evaluation in training."""

    follow: Annotated[tyro.conf.DisallowNone[bool | None], _FOLLOW] = None
    """Take up new versions while serving, of policies with latest or best, or of none. A version N never changes."""

    keep: int = 2
    """How many versions of a policy that were live before stay loaded, from 0 to 16, for a rollback."""

    state_dir: Annotated[Path | None, _STATE_DIR] = None
    """Folder for the server's decisions, such as a rollback, so that they survive a restart."""

    config: Annotated[Path | None, _CONFIG] = None
    """TOML file with settings, named as these flags with underscores. Flags and variables override it.
    A table [policies.NAME] has the path of a policy and its own versions, follow, max_batch_rows,
    max_batch_delay_s, max_queue_rows and device."""

    strict: bool = False
    """Refuse to start if the version to serve is damaged, instead of serving the next newest or next best one."""

    default_policy: str = ""
    """Policy for requests that name none; empty: the first one of --policies."""

    listen: str = "127.0.0.1:50051"
    """Address for gRPC: HOST:PORT, or unix:PATH for a Unix socket.
    The host 127.0.0.1 accepts connections from this machine only, 0.0.0.0 from every network, which needs TLS or
    --insecure. The port 0 picks a free one, which the ready line in the log shows.
    Only the user that runs the server can connect to a Unix socket: its mode is 0600. It is never encrypted."""

    tls_cert: Annotated[Path | None, _FILE] = None
    """Certificate of the server for TLS, in PEM format, followed by the intermediate ones; see docs/security.md.
    It needs --tls-key. It is read again when the file changes, as are the two files below."""

    tls_key: Annotated[Path | None, _FILE] = None
    """Private key of that certificate, in PEM format, not encrypted."""

    tls_client_ca: Annotated[Path | None, _FILE] = None
    """Certificates of the authorities that sign clients' certificates, in PEM format (mutual TLS).
    A client without a certificate of theirs is refused."""

    tokens: Annotated[Path | None, _TOKENS] = None
    """TOML file with the tokens that callers need, and the roles and the rate of each; docs/security.md describes it.
    Health needs no token. The file is read again when it changes."""

    insecure: bool = False
    """Allow other machines to connect in plain text. Anyone on the network can read and change what they send."""

    reflection: bool = False
    """Describe the services to tools such as grpcurl (gRPC server reflection). Not allowed beside locks."""

    http_port: Annotated[int | None, _HTTP_PORT] = None
    """Port for the Open Inference Protocol over HTTP; needs the extra `http`.
    It is on the host of --listen, or on 127.0.0.1 beside a Unix socket. 0 picks a free one, which the ready line in the
    log shows."""

    metrics: bool = True
    """Serve Prometheus metrics over HTTP, at /metrics of the metrics port."""

    metrics_port: int = 9464
    """Port for /healthz and /metrics over HTTP; 0 picks a free one, which the ready line in the log shows.
    /healthz is there with --no-metrics, too."""

    metrics_host: str = LOCALHOST
    """Host of that port: 127.0.0.1 for this machine only, 0.0.0.0 for every network.
    It is always plain HTTP and needs no token, so that probes and Prometheus can read it."""

    admin: str = "auto"
    """Address for kilolayer-admin, which switches versions: unix:PATH, HOST:PORT, auto or off.
    auto is a Unix socket in a folder of the user, named after the port; the ready line in the log shows it. Only the
    user that runs the server, and root, can connect. HOST:PORT needs TLS and a token with the role admin."""

    max_batch_rows: int = 256
    """Maximum rows in a batch, a power of two; 1 disables batching.
    A CPU uses at most 1024. Larger values take longer to compile at startup. For a single robot, use 1."""

    serve_when: ServeWhen = "all"
    """What must be compiled before health is SERVING: all batch sizes, or the first-batch of one row.
    With first-batch the other sizes are compiled while the server answers, and calls are slower meanwhile."""

    max_call_rows: int = 4096
    """Maximum rows in a request; every candidate of best-of counts as a row.
    A request with more rows than a batch is split into several batches."""

    max_queue_rows: int = 8192
    """Maximum rows in the queue of each policy; further requests are rejected with RESOURCE_EXHAUSTED.
    Connections with at most an eighth of it in the queue may exceed it by an eighth."""

    max_queue_age_s: float = 1.0
    """Maximum time that a request may be queued, in seconds.
    While one has been queued for longer, new requests are rejected with RESOURCE_EXHAUSTED."""

    max_batch_delay_s: float = 0.002
    """Maximum time that a batch which is not full waits for more rows, in seconds; 0 disables waiting.
    The server waits only while it is busy more than half of the time."""

    out_of_range: OutOfRange = "flag"
    """What happens to a request with a state far from those that the policy saw in training: flag it in the reply, or
    refuse it with INVALID_ARGUMENT. Far means more than 5 standard deviations beyond the smallest or largest value."""

    log_rows: Annotated[tuple[float, Path] | None, _LOG_ROWS] = None
    """Write a share of the answered rows into npz files in a folder, such as --log-rows 0.01 runs/rows.
    As a variable: 0.01:runs/rows."""

    log_rows_mb: int = 1024
    """Maximum size of that folder in MiB, at least 1 for each worker; the oldest files are deleted."""

    max_held_mb: int = 512
    """Maximum size of requests under way and of replies that are not sent yet, in MiB, for each worker.
    An open call counts as 16 KiB and an open stream as 80 KiB in addition. A connection holds at most half.
    Calls beyond the limit are ended with RESOURCE_EXHAUSTED."""

    max_streams: int = 16384
    """Maximum calls and streams that are open at the same time on one connection.
    A client waits before it opens more."""

    max_compute_s: float = 30.0
    """Maximum time to compute one batch, in seconds; far more than the largest batch takes.
    If it is exceeded, the device hangs: the batch fails, and the server exits with code 1, so that it is replaced."""

    grace_s: float = 10.0
    """Time to answer the accepted calls after SIGTERM or SIGINT, in seconds."""

    device: str = ""
    """Device that computes: cpu, gpu, or gpu:1 for the second GPU; empty: a GPU if JAX can use one, or else the CPU."""

    workers: int = 1
    """Worker processes, which share the port and the CPU cores.
    One process uses about one core to receive and send, so more workers help with many small requests.
    Use 1 with an accelerator."""

    tracing: bool = False
    """Send an OpenTelemetry span of every call, over OTLP; needs the extra `tracing`.
    OpenTelemetry's own environment variables configure it, such as OTEL_EXPORTER_OTLP_ENDPOINT."""

    log_format: LogFormat = "auto"
    """Format of the log on stderr: text, json (one object per line), or auto (text on a terminal, json otherwise)."""

    policy_settings: tyro.conf.Suppress[tyro.conf.Fixed[tuple[PolicySettings, ...]]] = dataclasses.field(
        default=(), metadata=NO_FLAG
    )
    """Settings of single policies, from the tables of --config."""

    @property
    def address(self) -> Address:
        """The address for gRPC."""
        return parse_address(self.listen)

    @property
    def tls(self) -> TlsFiles | None:
        """The files of TLS; None: connections are not encrypted."""
        return lock_settings.tls_files(self)

    @property
    def http_address(self) -> TcpAddress | None:
        """The address for HTTP; None: there is none."""
        return address_settings.http_address(self)

    def http_url(self, address: TcpAddress) -> str:
        """Return the URL of a server whose HTTP port is at `address`."""
        return f"{'https' if self.tls else 'http'}://{address}"

    @property
    def wanted_versions(self) -> Mapping[str, Wanted]:
        """The versions of --versions, by the name of the policy."""
        return parse_versions(self.versions)

    def admin_address(self, address: Address) -> Address | None:
        """Return the address for operators of a server that listens at `address`; None: it has none."""
        if self.admin == AUTO:
            return user_folders.admin_address(address)
        return address_settings.parse(self).admin

    @property
    def owns_admin_folder(self) -> bool:
        """Whether the server makes the folder of the address for operators; otherwise it must exist."""
        return self.admin == AUTO

    def __post_init__(self) -> None:
        self._expand_paths()
        self._check_versions()
        self._check_addresses()
        self._check_sizes()

    def _expand_paths(self) -> None:
        try:
            policies = tuple(map(_usable_policy, self.policies))
            log_rows = self.log_rows and (self.log_rows[0], local_path(self.log_rows[1], name="--log-rows"))
            given = {name: getattr(self, name) for name in PATHS}
            files = {name: path and local_path(path, name=flag(name)) for name, path in given.items()}
        except ValueError as error:
            raise ConfigError(str(error)) from error
        for name, value in {"policies": policies, "log_rows": log_rows, **files}.items():
            object.__setattr__(self, name, value)

    def _check_versions(self) -> None:
        try:
            parse_versions(self.versions)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if not 0 <= self.keep <= _MAX_KEPT:
            raise ConfigError(f"--keep must be from 0 to {_MAX_KEPT}, got {self.keep}; try 2")

    def _check_addresses(self) -> None:
        if not self.policies:
            raise ConfigError("--policies is missing; name at least one path, such as --policies runs/first/policies")
        try:
            found = address_settings.parse(self)
        except AddressError as error:
            raise ConfigError(str(error)) from error
        problem = address_settings.impossible(self, found) or lock_settings.impossible(self, admin=found.admin)
        if problem:
            raise ConfigError(problem)

    def _check_sizes(self) -> None:
        if not 1 <= self.max_call_rows <= _MAX_ROWS:
            raise ConfigError(f"--max-call-rows must be from 1 to {_MAX_ROWS}, got {self.max_call_rows}; try 4096")
        self._check_batching(self, name=flag)
        for settings in self.policy_settings:
            self._check_batching(settings, name=settings.key)
        for name, most, example in (("max_held_mb", _MAX_HELD_MB, 512), ("max_streams", _MAX_STREAMS, 16384)):
            number = getattr(self, name)
            if not 1 <= number <= most:
                raise ConfigError(f"{flag(name)} must be from 1 to {most}, got {number}; try {example}")
        for name, example in (("grace_s", "10"), ("max_queue_age_s", "1"), ("max_compute_s", "30")):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                raise ConfigError(f"{flag(name)} must be a positive number of seconds, got {seconds}; try {example}")
        self._check_row_log()

    def _check_batching(self, settings: "ServeConfig | PolicySettings", *, name: Callable[[str], str]) -> None:
        """Check the settings that a policy may have of its own. `name` gives what a message calls a field."""
        rows, queue_rows, delay_s = settings.max_batch_rows, settings.max_queue_rows, settings.max_batch_delay_s
        if rows is not None and (not 1 <= rows <= _MAX_ROWS or rows & (rows - 1)):
            raise ConfigError(
                f"{name('max_batch_rows')} must be a power of two from 1 to {_MAX_ROWS}, got {rows}; try 256"
            )
        if queue_rows is not None and queue_rows < self.max_call_rows:
            raise ConfigError(
                f"{name('max_queue_rows')} must be at least --max-call-rows, which is {self.max_call_rows}, got"
                f" {queue_rows}; try {2 * self.max_call_rows}"
            )
        if settings.device and not _DEVICE.fullmatch(settings.device):
            raise ConfigError(
                f"{name('device')} must be cpu, gpu or gpu:NUMBER, got {settings.device!r:.80}; try gpu:0"
            )
        if delay_s is not None and not 0 <= delay_s <= 1:
            raise ConfigError(f"{name('max_batch_delay_s')} must be from 0 to 1 second, got {delay_s}; try 0.002")

    def _check_row_log(self) -> None:
        if self.log_rows and not 0 < self.log_rows[0] <= 1:
            raise ConfigError(
                f"--log-rows must begin with a share above 0, at most 1, got {self.log_rows[0]}; try 0.01"
            )
        if self.log_rows_mb < self.workers:
            raise ConfigError(
                f"--log-rows-mb must be at least 1 for each worker, which is {self.workers}, got {self.log_rows_mb};"
                " try 1024"
            )


def _usable_policy(policy: PolicyPath | NamedPath) -> PolicyPath | NamedPath:
    """Return an element of --policies with a leading ~ replaced by the user's home folder."""
    if isinstance(policy, NamedPath):
        return NamedPath(policy.name, usable_path(policy.path, name="--policies"))
    return usable_path(policy, name="--policies")
