"""The file of --config: what it may say, what overrides it, and what is said of a mistake in it."""

import dataclasses
import re
from pathlib import Path

import pytest

from serving.command_line import parse
from serving.config import ConfigError, ServeConfig
from serving.policy_settings import NamedPath, PolicySettings

POLICIES = """
max_batch_rows = 64
follow = true

[policies.maze]
path = "runs/a=1/policies"
versions = "best"
follow = false
max_batch_rows = 8
max_batch_delay_s = 0
max_queue_rows = 5000
device = "cpu"

[policies."ant.v2"]
path = "~/ant/policies"
versions = 1000
"""
MAZE, ANT = NamedPath("maze", Path("runs/a=1/policies")), NamedPath("ant.v2", Path("/home/robot/ant/policies"))
OF_MAZE = PolicySettings(
    name="maze",
    versions="best",
    follow=False,
    max_batch_rows=8,
    max_batch_delay_s=0,
    max_queue_rows=5000,
    device="cpu",
)
OF_ANT = PolicySettings(name="ant.v2", versions=1000)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/robot")


def write(text: str) -> Path:
    """server.toml in the working folder."""
    path = Path("server.toml")
    path.write_text(text)
    return path


def read(text: str, *flags: str, **variables: str) -> ServeConfig:
    """The configuration with a file of this text, by flag."""
    path = write(text)
    environ = {f"KILOLAYER_{name}": value for name, value in variables.items()}
    return parse(["--config", str(path), *flags], environ)


def test_every_setting_may_be_in_the_file() -> None:
    text = """
        policies = ["runs/a/policies", "maze=~/b"]
        versions = ["maze=best"]
        follow = false
        keep = 1
        state_dir = "~/state"
        strict = true
        default_policy = "maze"
        listen = "127.0.0.1:1"
        metrics = false
        http_port = 3
        metrics_port = 2
        max_batch_rows = 4
        serve_when = "first-batch"
        max_call_rows = 8
        max_queue_rows = 16
        max_queue_age_s = 2
        max_batch_delay_s = 0.5
        out_of_range = "refuse"
        log_rows = [0.5, "rows"]
        log_rows_mb = 7
        max_held_mb = 9
        max_streams = 10
        max_compute_s = 11.5
        grace_s = 12
        workers = 3
        tracing = true
        log_format = "json"
        device = "gpu:0"
        admin = "127.0.0.1:3"
        tls_cert = "~/server.pem"
        tls_key = "server.key"
        tls_client_ca = "clients.pem"
        tokens = "tokens.toml"
        insecure = true
        metrics_host = "::1"
    """
    config = read(text)
    assert config == ServeConfig(
        policies=(Path("runs/a/policies"), NamedPath("maze", Path("/home/robot/b"))),
        versions=("maze=best",),
        follow=False,
        keep=1,
        state_dir=Path("/home/robot/state"),
        config=Path("server.toml"),
        strict=True,
        default_policy="maze",
        listen="127.0.0.1:1",
        metrics=False,
        http_port=3,
        metrics_port=2,
        max_batch_rows=4,
        serve_when="first-batch",
        max_call_rows=8,
        max_queue_rows=16,
        max_queue_age_s=2.0,
        max_batch_delay_s=0.5,
        out_of_range="refuse",
        log_rows=(0.5, Path("rows")),
        log_rows_mb=7,
        max_held_mb=9,
        max_streams=10,
        max_compute_s=11.5,
        grace_s=12.0,
        workers=3,
        tracing=True,
        log_format="json",
        device="gpu:0",
        admin="127.0.0.1:3",
        tls_cert=Path("/home/robot/server.pem"),
        tls_key=Path("server.key"),
        tls_client_ca=Path("clients.pem"),
        tokens=Path("tokens.toml"),
        insecure=True,
        metrics_host="::1",
    )
    unchanged = {each.name for each in dataclasses.fields(config) if getattr(config, each.name) == each.default}
    assert unchanged == {"policy_settings", "reflection"}, "settings that the file above lacks"
    assert read("policies = ['a']\nreflection = true").reflection  # it cannot be used beside tokens


def test_a_flag_overrides_a_variable_and_both_override_the_file() -> None:
    text = 'policies = ["a"]\nworkers = 2\nmax_batch_rows = 2\nmetrics = false\nkeep = 3'
    config = read(text, "--workers", "4", "--metrics", WORKERS="3", MAX_BATCH_ROWS="8")
    assert (config.workers, config.max_batch_rows, config.metrics, config.keep) == (4, 8, True, 3)
    assert read(text, "--policies", "b").policies == (Path("b"),)


def test_a_variable_may_name_the_file_and_a_flag_names_another() -> None:
    path = write('policies = ["a"]')
    environ = {"KILOLAYER_CONFIG": str(path)}
    assert parse([], environ) == ServeConfig(policies=(Path("a"),), config=path)
    other = path.rename("other.toml")
    assert parse(["--config=other.toml"], environ) == ServeConfig(policies=(Path("a"),), config=other)


def test_a_table_has_the_path_and_the_settings_of_one_policy() -> None:
    assert read(POLICIES) == ServeConfig(
        policies=(MAZE, ANT),
        follow=True,
        max_batch_rows=64,
        config=Path("server.toml"),
        policy_settings=(OF_MAZE, OF_ANT),
    )


def test_the_files_of_the_documentation_are_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    first, second = (block.split("```")[0] for block in page.split("```toml\n")[1:])
    assert [own.device for own in read(second).policy_settings] == ["cpu", "gpu:0"]
    config = read(first)
    assert config.policies == (
        NamedPath("maze", Path("runs/first/policies")),
        NamedPath("arm", Path("runs/arm/policies")),
    )
    assert config.policy_settings == (
        PolicySettings(name="maze", versions="best", follow=True),
        PolicySettings(name="arm", versions=201600, max_batch_rows=1, max_batch_delay_s=0.0, max_queue_rows=4096),
    )


def test_the_path_of_a_table_is_a_path_whatever_exists() -> None:
    Path("maze=runs").mkdir()
    assert read('[policies.maze]\npath = "runs"').policies == (NamedPath("maze", Path("runs")),)


def test_flags_and_variables_override_the_tables() -> None:
    config = read(POLICIES, "--max-batch-rows", "16", "--versions", "maze=7", FOLLOW="true")
    assert config.policy_settings == (dataclasses.replace(OF_MAZE, max_batch_rows=None, follow=None), OF_ANT)
    assert (config.max_batch_rows, config.follow, config.wanted_versions) == (16, True, {"maze": 7})
    other = read(POLICIES, "--policies", "maze=runs/b")
    assert other.policies == (NamedPath("maze", Path("runs/b")),)
    assert other.policy_settings == (OF_MAZE, OF_ANT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "max_batch_row = 8",
            "max_batch_row in server.toml is not a setting of the server; did you mean max_batch_rows?",
        ),
        ("max-batch-rows = 8", "max-batch-rows in server.toml must be written with underscores: max_batch_rows"),
        ('config = "other.toml"', "config in server.toml is not a setting of the server; did you mean "),
        ('max_batch_rows = "8"', "max_batch_rows in server.toml must be an integer, got '8'"),
        ("max_batch_rows = true", "max_batch_rows in server.toml must be an integer, got True"),
        ("grace_s = []", "grace_s in server.toml must be one value, not an array, got []"),
        ('grace_s = "1"', "grace_s in server.toml must be a number, got '1'"),
        ("metrics = 1", "metrics in server.toml must be true or false, got 1"),
        ("listen = 50051", "listen in server.toml must be a string, got 50051"),
        ('log_format = "xml"', "log_format in server.toml must be auto, json or text, got 'xml'"),
        ('policies = "a"', "policies in server.toml must be an array, got 'a'"),
        ("log_rows = [0.5]", "log_rows in server.toml needs 2 values, got '0.5'"),
        ("log_rows = [0.5, 1]", "log_rows in server.toml must be a string, got 1"),
        ("workers = 0", "workers in server.toml must be from 1 to 256, got 0"),
        (
            'listen = "a:1"\nmetrics_port = 1',
            "metrics_port in server.toml must differ from the port of listen in server.",
        ),
        ('versions = ["maze"]', "versions in server.toml needs NAME=latest, NAME=best or NAME=NUMBER, got 'maze'"),
        ("workers 1", "--config server.toml is not valid TOML: Expected '=' after a key in a key/value pair (at line"),
        ("policies.maze = 3", "policies.maze in server.toml must be a table, got 3"),
        ("[policies.maze]", "policies.maze.path in server.toml is missing; set it to a folder such as"),
        ('[policies."a b"]', "policies in server.toml has a policy whose name is not allowed: name must be 1 to 64"),
        ('[policies.maze]\npath = "az://b/x"', "policies.maze.path in server.toml must be a path on this machine, got"),
        (
            '[policies.maze]\npath = "a"\nmax-queue-rows = 8',
            "policies.maze.max-queue-rows in server.toml must be written with underscores: max_queue_rows",
        ),
        (
            '[policies.maze]\npath = "a"\nversion = 8',
            "policies.maze.version in server.toml is not a setting of a policy; did you mean versions?",
        ),
        (
            '[policies.maze]\npath = "a"\nversions = "newest"',
            "policies.maze.versions in server.toml must be latest, best or the number of a version, got 'newest'",
        ),
        (
            '[policies.maze]\npath = "a"\nversions = true',
            "policies.maze.versions in server.toml must be latest, best or the number of a version, got 'True'",
        ),
        (
            '[policies.maze]\npath = "a"\nmax_batch_rows = 3',
            "policies.maze.max_batch_rows in server.toml must be a power of two from 1 to 65536, got 3; try 256",
        ),
        (
            'max_call_rows = 100\n[policies.maze]\npath = "a"\nmax_queue_rows = 3',
            "policies.maze.max_queue_rows in server.toml must be at least max_call_rows in server.toml, which is 100",
        ),
        (
            'versions = ["maze=1"]\n[policies.maze]\npath = "a"',
            "versions in server.toml is not allowed beside tables; write it into each of them",
        ),
        ("[policies]", "--policies is missing; name at least one path, such as --policies runs/first/policies"),
    ],
)
def test_a_mistake_is_one_line_with_the_file_and_the_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(text if "polic" in text else f'policies = ["a"]\n{text}')
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(message)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    message = "--config nowhere.toml cannot be read: No such file or directory"
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(["--config", "nowhere.toml"], {})
    with pytest.raises(ConfigError, match=re.escape("--config . cannot be read: Is a directory")):
        parse(["--config", "."], {})
    (tmp_path / "latin.toml").write_bytes(b"listen = '\xe9'")
    with pytest.raises(ConfigError, match=r"--config latin.toml is not valid TOML: .*can't decode"):
        parse(["--config", "latin.toml"], {})
    with pytest.raises(ConfigError, match="--config must be a path on this machine, got the URL s3://b/server.toml"):
        parse(["--config", "s3://b/server.toml"], {})
