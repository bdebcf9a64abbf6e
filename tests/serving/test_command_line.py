"""The command line: what it reads, and what it says of what it cannot read."""

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

from policy.command_line import SERVER_VARIABLES, options
from serving.command_line import client_variable_warnings, parse
from serving.config import ConfigError, ServeConfig
from serving.policy_settings import BucketUrl, NamedPath, PolicySettings
from serving.sockets import TcpAddress, UnixAddress


def test_flags_become_the_configuration() -> None:
    numbers = ["--metrics-port", "2", "--max-batch-rows", "4", "--grace-s", "0.5"]
    arguments = ["--policies", "a", "b", *numbers, "--no-metrics", "--listen", "[::1]:1"]
    assert parse(arguments, {}) == ServeConfig(
        policies=(Path("a"), Path("b")),
        listen="[::1]:1",
        metrics_port=2,
        metrics=False,
        max_batch_rows=4,
        grace_s=0.5,
    )


def test_variables_stand_for_flags_and_a_flag_beats_its_variable() -> None:
    environ = {
        "KILOLAYER_POLICIES": "a\nruns/12:30:00/policies\n",
        "KILOLAYER_LISTEN": "127.0.0.1:1",
        "KILOLAYER_METRICS": "No",
        "KILOLAYER_MAX_QUEUE_ROWS": "",  # as unset
        "OTHER_PORT": "x",
    }
    config = parse(["--listen", "unix:/run/a.sock"], environ)
    assert config == ServeConfig(
        policies=(Path("a"), Path("runs/12:30:00/policies")), listen="unix:/run/a.sock", metrics=False
    )
    other = parse(["--policies", "c", "--metrics"], environ)
    assert (other.policies, other.address) == ((Path("c"),), TcpAddress("127.0.0.1", 1))


def test_a_policy_has_a_name_a_version_and_is_followed_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/robot")
    Path("depth=4").mkdir()
    words = ["maze=runs/lr=1/policies", "depth=4", "runs/lr=1/policies", "ant=~/a"]
    flags = ["--policies", *words, "--versions", "maze=best", "ant=1000", "--follow", "--keep", "0", "--state-dir", "s"]
    expected = ServeConfig(
        policies=(
            NamedPath("maze", Path("runs/lr=1/policies")),
            Path("depth=4"),  # it exists
            Path("runs/lr=1/policies"),  # a name has no slash
            NamedPath("ant", Path("/home/robot/a")),
        ),
        versions=("maze=best", "ant=1000"),
        follow=True,
        keep=0,
        state_dir=Path("s"),
    )
    assert parse(flags, {}) == expected
    assert expected.wanted_versions == {"maze": "best", "ant": 1000}
    variables = {"POLICIES": "\n".join(words), "VERSIONS": "maze=best\nant=1000", "FOLLOW": "on", "KEEP": "0"}
    environ = {f"KILOLAYER_{name}": value for name, value in (variables | {"STATE_DIR": "s"}).items()}
    assert parse([], environ) == expected
    assert parse(["--no-follow"], environ) == dataclasses.replace(expected, follow=False)
    assert parse(["--policies", "depth=4"], {}).follow is None


def test_the_share_and_the_folder_of_sampled_rows_are_two_words_or_one_variable() -> None:
    flags = ["--log-rows", "0.01", "runs/rows", "--policies", "a", "--out-of-range", "refuse"]
    expected = ServeConfig(policies=(Path("a"),), log_rows=(0.01, Path("runs/rows")), out_of_range="refuse")
    assert parse(flags, {}) == expected
    environ = {"KILOLAYER_LOG_ROWS": "0.01:runs/rows", "KILOLAYER_OUT_OF_RANGE": "refuse"}
    assert parse(["--policies", "a"], environ) == expected
    with_colon = parse(["--policies", "a"], {"KILOLAYER_LOG_ROWS": "1:a:b"}).log_rows
    assert with_colon == (1.0, Path("a:b"))
    assert parse(["--log-rows", "0.5", "b", "--policies", "a"], environ).log_rows == (0.5, Path("b"))


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"KILOLAYER_METRICS_PORT": "http://10.0.0.1"},
            "KILOLAYER_METRICS_PORT must be an integer, such as 9464, got 'http://10.0.0.1'",
        ),
        ({"KILOLAYER_GRACE_S": "1 min"}, "KILOLAYER_GRACE_S must be a number, such as 10.0, got '1 min'"),
        ({"KILOLAYER_METRICS": "maybe"}, "KILOLAYER_METRICS must be true or false, got 'maybe'"),
        (
            {"KILOLAYER_MAX_BATCH_ROW": "8"},
            "MAX_BATCH_ROW is not a setting of the server; did you mean KILOLAYER_MAX_BATCH_ROWS?",
        ),
        (
            {"KILOLAYER_QUEUE_AGE": ""},
            "KILOLAYER_QUEUE_AGE is not a setting of the server; did you mean KILOLAYER_MAX_QUEUE_AGE_S?",
        ),
        ({}, "--policies is missing; name at least one path, such as --policies runs/first/policies"),
        (
            {"KILOLAYER_POLICIES": "a", "KILOLAYER_VERSIONS": "a"},
            "KILOLAYER_VERSIONS needs NAME=latest, NAME=best or NAME=NUMBER, got 'a'",
        ),
        ({"KILOLAYER_POLICIES": "a b=c"}, "KILOLAYER_POLICIES 'a b=c': the name before = is not allowed: name must be"),
        ({"KILOLAYER_LOG_FORMAT": "xml"}, "KILOLAYER_LOG_FORMAT must be auto, json or text, got 'xml'"),
        ({"KILOLAYER_LOG_ROWS": "0.01"}, "KILOLAYER_LOG_ROWS needs 2 values, got '0.01'; --help describes it"),
        ({"KILOLAYER_LOG_ROWS": "a:b"}, "KILOLAYER_LOG_ROWS must be a number, got 'a'"),
        (
            {"KILOLAYER_POLICIES": "https://bucket/x"},
            "KILOLAYER_POLICIES must be a path on this machine, got the URL https://",
        ),
        (
            {"KILOLAYER_POLICIES": "a", "KILOLAYER_MAX_BATCH_ROWS": "3"},
            "KILOLAYER_MAX_BATCH_ROWS must be a power of two from 1 to 65536, got 3; try 256",
        ),
        (
            {"KILOLAYER_POLICIES": "a", "KILOLAYER_LISTEN": "127.0.0.1:9464"},
            "--metrics-port must differ from the port of KILOLAYER_LISTEN, got 9464 for both",
        ),
    ],
)
def test_a_bad_variable_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse([], environ)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--worker", "3"], "--worker is not a flag; did you mean --workers? --help lists all flags"),
        (["--workers", "x"], "--workers must be an integer, such as 1, got 'x'"),
        (["--workers=0"], "--workers must be from 1 to 256, got 0"),
        (["--workers"], "--workers needs a value, such as --workers 1; --help describes it"),
        (["--listen", "--workers", "1"], "--listen needs a value; --help describes it"),
        (["--metrics=3"], "--metrics takes no value, got '3'; --help describes it"),
        (["--log-rows", "0.1"], "--log-rows needs 2 values, got '0.1'; --help describes it"),
        (["--policies", "~nobody-has-this-name/x"], "--policies is ~nobody-has-this-name/x, and this user has no such"),
        (
            ["--log-rows", "1", "gs://rows"],
            "--log-rows must be a path on this machine, got the URL gs://rows; use a folder",
        ),
        (["x", "--workers", "1"], "'x' belongs to no flag; --help lists all flags"),
        (["--follow", "maze"], "--follow takes no value, got 'maze'; --help describes it"),
        (
            ["--policies", "maze="],
            "--policies needs a path after the name, such as maze=runs/first/policies, got 'maze='",
        ),
        (["--policies", "maze=az://b/x"], "--policies must be a path on this machine, got the URL az://b/x"),
        (["--policies", "az://b/x=1"], "--policies must be a path on this machine, got the URL az://b/x=1"),
        (["--policies", "s3:///x"], "--policies must be a path on this machine, got the URL s3://x"),
    ],
)
def test_a_bad_flag_is_named_and_not_the_variable_that_it_overrides(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(arguments, {"KILOLAYER_POLICIES": "a", "KILOLAYER_WORKERS": "y"} if "--workers" in arguments[0] else {})
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(message)


def test_the_address_for_operators_is_a_socket_of_the_port_one_of_your_own_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    usual = parse(["--policies", "a"], {})
    assert str(usual.admin_address(TcpAddress("::1", 50061))) == f"unix:{tmp_path}/kilolayer/admin-50061.sock"
    assert usual.owns_admin_folder
    own = parse(["--policies", "a", "--admin", "unix:/run/admin.sock"], {})
    assert own.admin_address(TcpAddress("::1", 50061)) == UnixAddress(Path("/run/admin.sock"))
    assert not own.owns_admin_folder
    assert parse(["--policies", "a"], {"KILOLAYER_ADMIN": "off"}).admin_address(TcpAddress("::1", 50061)) is None


def test_a_tilde_is_the_home_folder_in_flags_and_in_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/robot")
    expected = ServeConfig(policies=(Path("/home/robot/a"), Path("b~/~")), log_rows=(1.0, Path("/home/robot")))
    assert parse(["--policies", "~/a", "b~/~", "--log-rows", "1", "~"], {}) == expected
    assert parse([], {"KILOLAYER_POLICIES": "~/a\nb~/~", "KILOLAYER_LOG_ROWS": "1:~"}) == expected


def test_the_names_that_training_ignores_are_those_of_the_server() -> None:
    assert {f"KILOLAYER_{name.upper()}" for name in options(ServeConfig)} == SERVER_VARIABLES


LOCKS = [
    ("KILOLAYER_TLS", ["--tls-cert", "c", "--tls-key", "k"], "KILOLAYER_TLS_CERT"),
    ("KILOLAYER_TLS_CA", ["--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "a"], "KILOLAYER_TLS_CLIENT_CA"),
    ("KILOLAYER_TLS_CLIENT_CERT", ["--tls-cert", "c", "--tls-key", "k"], "KILOLAYER_TLS_CERT"),
    ("KILOLAYER_TLS_CLIENT_KEY", ["--tls-cert", "c", "--tls-key", "k"], "KILOLAYER_TLS_KEY"),
    ("KILOLAYER_TOKEN", ["--tokens", "t"], "KILOLAYER_TOKENS"),
    ("KILOLAYER_TOKEN_FILE", ["--tokens", "t"], "KILOLAYER_TOKENS"),
]


@pytest.mark.parametrize(("variable", "flags", "setting"), LOCKS)
def test_a_variable_of_clients_in_place_of_a_lock_is_a_warning(
    variable: str, flags: list[str], setting: str, tmp_path: Path
) -> None:
    def warnings(arguments: list[str], **environ: str) -> list[str]:
        return client_variable_warnings(parse(["--policies", "a", *arguments], environ), environ)

    warning = f"{variable} is read by clients only; the server's setting is {setting}"
    assert warnings([], **{variable: "true"}) == [warning]
    assert warnings([], **{variable: ""}) == []
    assert warnings(flags, **{variable: "true"}) == []
    pairs = list(zip(flags[::2], flags[1::2], strict=True))
    assert (
        warnings([], **{variable: "true"}, **{f"KILOLAYER_{f[2:].replace('-', '_').upper()}": w for f, w in pairs})
        == []
    )
    file = tmp_path / "server.toml"
    file.write_text("".join(f'{flag[2:].replace("-", "_")} = "{word}"\n' for flag, word in pairs))
    assert warnings(["--config", str(file)], **{variable: "true"}) == []


def test_other_variables_of_clients_are_no_warning() -> None:
    environ = {"KILOLAYER_TLS": "false", "KILOLAYER_SERVER_NAME": "policy.example.com"}
    assert client_variable_warnings(parse(["--policies", "a"], environ), environ) == []


def test_help_is_printed_whatever_the_variables_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(["--worker", "--help"], {"KILOLAYER_BANANA": "1"})
    assert left.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_variables_that_kubernetes_sets_for_services_are_no_settings() -> None:
    values = {"SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_GRPC": "80", "PORT": "tcp://10.0.0.1:80"}
    values |= {"PORT_80_TCP": "tcp://10.0.0.1:80", "PORT_80_TCP_ADDR": "10.0.0.1", "PORT_80_TCP_PROTO": "tcp"}
    environ = {f"KILOLAYER_WEB_{name}": value for name, value in values.items()}
    environ |= {f"KILOLAYER_{name}": value for name, value in values.items()}
    assert parse(["--policies", "a"], environ) == ServeConfig(policies=(Path("a"),))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"listen": ":1"}, "--listen must name a host, got ':1'; use 127.0.0.1 for this machine only, 0.0.0.0 for"),
        ({"listen": "127.0.0.1"}, "--listen must end with a port, got '127.0.0.1'; use HOST:PORT, such as 127.0.0.1:"),
        ({"listen": "50051"}, "--listen must end with a port, got '50051'; use HOST:PORT, such as 127.0.0.1:50051"),
        ({"listen": "a:-1"}, "--listen must end with a port, got 'a:-1'; use HOST:PORT, such as 127.0.0.1:50051"),
        ({"listen": "a:65536"}, "--listen must have a port from 0 to 65535, got 65536; 0 picks a free port"),
        ({"listen": "::1:50051"}, "--listen needs brackets around an IPv6 host, such as [::1]:50051, got '::1:50051'"),
        (
            {"listen": "unix:~nobody-here/a"},
            "--listen must name a path in a home folder that exists, got '~nobody-here/a'; use an absolute path",
        ),
        ({"listen": "unix:"}, "--listen must name a path after unix:, such as unix:/run/kilolayer/act.sock"),
        (
            {"listen": "unix:/" + 107 * "x"},
            "--listen must name a path of at most 107 bytes, got 108: /xxx",
        ),
        (
            {"listen": "unix:/a", "workers": 2},
            "--workers 2 needs a port, because gRPC cannot share a Unix socket between processes, got --listen unix:",
        ),
        (
            {"admin": "127.0.0.1:50052"},
            "--admin 127.0.0.1:50052 is a port, which needs TLS: add --tls-cert FILE and --tls-key FILE; or leave out",
        ),
        (
            {"admin": "127.0.0.1:50052", "tls_cert": Path("c"), "tls_key": Path("k")},
            "--admin 127.0.0.1:50052 is a port, which needs a token with the role admin: add --tokens FILE; or leave",
        ),
        ({"admin": "on"}, "--admin must be unix:PATH, HOST:PORT, auto or off, got 'on'"),
        ({"admin": "a:b"}, "--admin must end with a port, got 'a:b'; use HOST:PORT, such as 127.0.0.1:50051"),
        ({"tls_cert": Path("c")}, "--tls-cert c needs the key of the certificate; add --tls-key FILE"),
        ({"tls_key": Path("k")}, "--tls-key k needs the certificate of the key; add --tls-cert FILE"),
        ({"tls_client_ca": Path("a")}, "--tls-client-ca a needs TLS; add --tls-cert FILE and --tls-key FILE"),
        (
            {"reflection": True, "tokens": Path("t")},
            "--reflection describes the services to every caller, so it cannot be used beside --tokens; leave it out",
        ),
        (
            {"reflection": True, "tls_cert": Path("c"), "tls_key": Path("k"), "tls_client_ca": Path("a")},
            "--reflection describes the services to every caller, so it cannot be used beside --tls-client-ca; leave",
        ),
        ({"metrics_host": ""}, "--metrics-host must be a host without a port, got ''; use 127.0.0.1 for this machine"),
        ({"metrics_host": "0.0.0.0:9464"}, "--metrics-host must be a host without a port, got '0.0.0.0:9464'; use"),
        ({"admin": "unix:"}, "--admin must name a path after unix:, such as"),
        ({"admin": "unix:/a", "listen": "unix:/a"}, "--admin must differ from --listen, got unix:/a for both; leave"),
        ({"metrics_port": 65536}, "--metrics-port must be from 0 to 65535, got 65536; 0 picks a free port"),
        (
            {"metrics_port": 50051},
            "--metrics-port must differ from the port of --listen, got 50051 for both; 0 picks a free port",
        ),
        ({"workers": 0}, "--workers must be from 1 to 256, got 0; use at most one for each core"),
        ({"max_batch_rows": 0}, "--max-batch-rows must be a power of two from 1 to 65536, got 0; try 256"),
        ({"max_batch_rows": 100}, "--max-batch-rows must be a power of two from 1 to 65536, got 100; try 256"),
        ({"max_call_rows": 0}, "--max-call-rows must be from 1 to 65536, got 0; try 4096"),
        (
            {"max_queue_rows": 4095},
            "--max-queue-rows must be at least --max-call-rows, which is 4096, got 4095; try 8192",
        ),
        ({"max_queue_age_s": 0.0}, "--max-queue-age-s must be a positive number of seconds, got 0.0; try 1"),
        ({"max_compute_s": 0.0}, "--max-compute-s must be a positive number of seconds, got 0.0; try 30"),
        ({"max_batch_delay_s": -0.1}, "--max-batch-delay-s must be from 0 to 1 second, got -0.1; try 0.002"),
        ({"log_rows": (0.0, Path("a"))}, "--log-rows must begin with a share above 0, at most 1, got 0.0; try 0.01"),
        ({"log_rows": (1.5, Path("a"))}, "--log-rows must begin with a share above 0, at most 1, got 1.5; try 0.01"),
        (
            {"workers": 3, "log_rows_mb": 2},
            "--log-rows-mb must be at least 1 for each worker, which is 3, got 2; try 1024",
        ),
        ({"grace_s": float("inf")}, "--grace-s must be a positive number of seconds, got inf; try 10"),
        ({"device": "cuda"}, "--device must be cpu, gpu or gpu:NUMBER, got 'cuda'; try gpu:0"),
        ({"device": "gpu:x"}, "--device must be cpu, gpu or gpu:NUMBER, got 'gpu:x'; try gpu:0"),
        (
            {"policy_settings": (PolicySettings(name="maze", device="cpu:1"),)},
            "policies.maze.device must be cpu, gpu or gpu:NUMBER, got 'cpu:1'; try gpu:0",
        ),
        ({"keep": 17}, "--keep must be from 0 to 16, got 17; try 2"),
        ({"keep": -1}, "--keep must be from 0 to 16, got -1; try 2"),
        ({"versions": ("maze",)}, "--versions needs NAME=latest, NAME=best or NAME=NUMBER, got 'maze'"),
        (
            {"versions": ("maze=newest",)},
            "--versions 'maze' must be latest, best or the number of a version, got 'newest'",
        ),
        ({"versions": ("maze=007",)}, "--versions 'maze' must be latest, best or the number of a version, got '007'"),
        ({"versions": ("maze=1", "maze=2")}, "--versions names 'maze' twice; give one version for each policy"),
        ({"state_dir": Path("s3://bucket/x")}, "--state-dir must be a path on this machine, got the URL s3://bucket/x"),
        (
            {"policy_settings": (PolicySettings(name="maze", max_batch_rows=3),)},
            "policies.maze.max_batch_rows must be a power of two from 1 to 65536, got 3; try 256",
        ),
        (
            {"policy_settings": (PolicySettings(name="maze", max_queue_rows=1),)},
            "policies.maze.max_queue_rows must be at least --max-call-rows, which is 4096, got 1; try 8192",
        ),
        (
            {"policy_settings": (PolicySettings(name="maze", max_batch_delay_s=2.0),)},
            "policies.maze.max_batch_delay_s must be from 0 to 1 second, got 2.0; try 0.002",
        ),
        ({"grace_s": 0.0}, "--grace-s must be a positive number of seconds, got 0.0; try 10"),
    ],
)
def test_an_impossible_configuration_names_the_flag_the_value_and_one_that_works(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        dataclasses.replace(ServeConfig(policies=(Path("a"),)), **fields)


def test_a_path_may_be_in_a_bucket() -> None:
    words = ["maze=s3://bucket/run=1/policies/", "gs://bucket", "gs://bucket/a=b", "maze.2=folder"]
    config = parse(["--policies", *words], {})
    assert config.policies == (
        NamedPath("maze", BucketUrl("s3://bucket/run=1/policies")),
        BucketUrl("gs://bucket"),
        BucketUrl("gs://bucket/a=b"),
        NamedPath("maze.2", Path("folder")),
    )
    assert parse([], {"KILOLAYER_POLICIES": "\n".join(words)}) == config


def test_a_bucket_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    message = (
        "--policies gs://bucket/policies is in a bucket, which needs the extra `remote`: pip install"
        " -e '.[remote]'; or use a folder such as runs/first/policies"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(["--policies", "maze=gs://bucket/policies"], {})


def test_the_parts_of_an_address_in_a_bucket() -> None:
    url = BucketUrl("gs://bucket/run/policies")
    assert (url.name, str(url / "200"), str(url.parent)) == (
        "policies",
        "gs://bucket/run/policies/200",
        "gs://bucket/run",
    )
    assert url.parent.parent == BucketUrl("gs://bucket") == BucketUrl("gs://bucket").parent


def test_both_ports_may_be_any_free_one() -> None:
    free = ServeConfig(policies=(Path("a"),), listen="127.0.0.1:0", metrics_port=0)
    assert (free.address, free.metrics_port) == (TcpAddress("127.0.0.1", 0), 0)
    with pytest.raises(ConfigError, match="--metrics-port must differ from the port of --listen, got 1 for both"):
        dataclasses.replace(free, listen="127.0.0.1:1", metrics_port=1, metrics=False)  # health is there nevertheless


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse(["--help"], {})
    assert left.value.code == 0
    text = capsys.readouterr().out
    for name in options(ServeConfig):
        assert "--" + name.replace("_", "-") in text
    assert "KILOLAYER_MAX_BATCH_ROWS=64" in text
    assert "--policies [NAME=]PATH ..." in text
    assert "or s3://bucket/first/policies. (required)" in " ".join(text.replace("│", " ").split())
