"""The admin address, over gRPC at a Unix socket: what each method does, who may call it, and what is logged."""

import asyncio
import contextlib
import io
import json
import logging
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from kilolayer.v1 import admin_pb2 as pb
from kilolayer.v1.admin_pb2_grpc import PolicyAdminStub
from serving.api.admin_server import AdminServer
from serving.errors import StartupError
from serving.sockets import UnixAddress
from serving.telemetry.logs import formatter
from tests.serving.decisions import DAMAGE, Decisions

REPOSITORY = Path(__file__).parents[2]


class Admin:
    """An admin server of `policies` at a Unix socket, and a channel to it."""

    def __init__(self, folder: Path, *policies: str, sockets: Path | None = None) -> None:
        self.decisions = Decisions(folder / "policies", *policies)
        self.metrics = CollectorRegistry()
        self.drained = 0
        self.address = UnixAddress((sockets or folder) / "kilolayer" / "admin.sock")
        self.server = AdminServer(
            self.decisions.deployment, self.address, drain=self.drain, collectors=self.metrics, owns_folder=True
        )
        # Otherwise gRPC would use one connection for all channels to an address.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.aio.insecure_channel(self.address.uri, options=options)
        self.stub = PolicyAdminStub(self.channel)

    def drain(self) -> None:
        self.drained += 1

    async def call(self, method: str, **fields: object) -> Any:
        """Call a method of PolicyAdmin as ann."""
        request = getattr(pb, f"{method}Request")(**fields)
        return await getattr(self.stub, method)(request, timeout=10, metadata=[("kilolayer-admin-user", "ann")])

    def count(self, action: str, outcome: str) -> float | None:
        labels = {"action": action, "outcome": outcome}
        return self.metrics.get_sample_value("kilolayer_admin_actions_total", labels)


@contextlib.asynccontextmanager
async def started(folder: Path, *policies: str) -> AsyncGenerator[Admin]:
    admin = Admin(folder, *policies)
    await admin.decisions.restore()
    await admin.server.start()
    try:
        yield admin
    finally:
        await admin.channel.close()
        await admin.server.stop()


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncGenerator[Admin]:
    async with started(tmp_path, "bee", "ant") as admin:
        await admin.decisions.publish_more_of_ant()
        yield admin


@contextlib.contextmanager
def refused(code: str, reason: str, message: str) -> Generator[None]:
    """Expect a call to fail so."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        yield
    assert error.value.code().name == code
    assert dict(error.value.trailing_metadata() or ())["kilolayer-reason"] == reason
    assert re.fullmatch(message, error.value.details() or ""), error.value.details()


@pytest.fixture
def log() -> Generator[io.StringIO]:
    """The server's log, as JSON lines."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter("json", terminal=False))
    logger = logging.getLogger("serving.api.admin_actions")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


METHODS = ("Status", "Load", "Unload", "Switch", "Rollback", "Follow", "Canary", "Shadow", "Drain")
ENCODED_ANT = pb.PolicyStatus(
    policy="ant",
    live_version="2000",
    previous_versions=["1000"],
    loaded_versions=["1000", "2000"],
    following=True,
    wanted="latest",
    refused=[pb.RefusedVersion(version="3000", reason="hash", detail="params/x has changed since it was written")],
)
ENCODED_BEE = pb.PolicyStatus(policy="bee", live_version="7", loaded_versions=["7"], wanted="7")


async def test_status_has_every_policy_sorted_or_one(admin: Admin) -> None:
    assert await admin.call("Status") == pb.StatusResponse(policies=[ENCODED_ANT, ENCODED_BEE])
    assert await admin.call("Status", policy="bee") == pb.StatusResponse(policies=[ENCODED_BEE])
    with refused("NOT_FOUND", "unknown_policy", "there is no policy 'cat'; there are: ant, bee"):
        await admin.call("Status", policy="cat")
    assert [admin.count("status", "ok"), admin.count("status", "unknown_policy")] == [2, 1]


async def test_a_canary_begins_changes_and_ends(admin: Admin) -> None:
    rule = {"margin": 0.02, "min_episodes": 50}
    status = (await admin.call("Canary", policy="ant", version="2500", share=0.25, rule=rule)).policy
    canary = status.canary
    assert (canary.version, canary.share, canary.live_episodes, canary.candidate_episodes) == ("2500", 0.25, 0, 0)
    assert canary.rule == pb.CanaryRule(
        false_promotion_rate=0.05, false_rollback_rate=0.05, margin=0.02, min_episodes=50
    )
    assert [canary.better_evidence, canary.worse_evidence] == pytest.approx([1, 1])
    assert (status.live_version, status.loaded_versions, status.following) == ("2000", ["1000", "2000", "2500"], False)
    status = (await admin.call("Canary", policy="ant", version="2500", share=0.5)).policy
    assert status.canary == pb.CanaryStatus(version="2500", share=0.5, better_evidence=1, worse_evidence=1)
    status = (await admin.call("Canary", policy="ant", off=True)).policy
    assert (status.HasField("canary"), status.loaded_versions) == (False, ["1000", "2000"])
    assert admin.count("canary", "ok") == 3


async def test_a_shadow_begins_and_ends(admin: Admin) -> None:
    status = (await admin.call("Shadow", policy="ant", version="2500", share=0.125)).policy
    assert status.shadow == pb.ShadowStatus(version="2500", share=0.125)
    status = (await admin.call("Shadow", policy="ant", off=True)).policy
    assert not status.HasField("shadow")
    assert admin.count("shadow", "ok") == 2


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("Canary", {"share": 0}, "the share of a canary must be above 0 and at most 1, got 0.0"),
        ("Canary", {"share": 1.5}, "the share of a canary must be above 0 and at most 1, got 1.5"),
        (
            "Canary",
            {"share": 0.5, "rule": {"false_promotion_rate": -1}},
            "false_promotion_rate must be above 0 and below 1, such as 0.05; got -1.0",
        ),
        ("Shadow", {"share": float("nan")}, "the share of a shadow must be above 0 and at most 1, got nan"),
    ],
)
async def test_a_share_or_a_rule_out_of_range_is_refused(
    admin: Admin, method: str, fields: dict[str, Any], message: str
) -> None:
    with refused("INVALID_ARGUMENT", "invalid_request", message):
        await admin.call(method, policy="ant", version="2500", **fields)
    assert admin.decisions.loaded("ant") == (1000, 2000)


async def test_a_version_is_loaded_made_live_rolled_back_and_unloaded(admin: Admin) -> None:
    status = (await admin.call("Load", policy="ant", version="2500")).policy
    assert (status.live_version, status.loaded_versions, status.following) == ("2000", ["1000", "2000", "2500"], True)
    status = (await admin.call("Switch", policy="ant", version="2500")).policy
    assert (status.live_version, status.previous_versions, status.following) == ("2500", ["2000", "1000"], False)
    status = (await admin.call("Rollback", policy="ant")).policy
    assert (status.live_version, status.previous_versions) == ("2000", ["1000"])
    status = (await admin.call("Unload", policy="ant", version="2500")).policy
    assert status.loaded_versions == ["1000", "2000"]
    assert [admin.count(name, "ok") for name in ("load", "switch", "rollback", "unload")] == [1, 1, 1, 1]


async def test_following_is_turned_off_and_on(admin: Admin) -> None:
    assert not (await admin.call("Follow", policy="ant", off=True)).policy.following
    assert (await admin.call("Follow", policy="ant")).policy.following


async def test_drain_begins_to_stop_the_server(admin: Admin) -> None:
    assert await admin.call("Drain") == pb.DrainResponse()
    assert admin.drained == 1


async def test_the_log_names_the_policy_and_what_is_ended_though_the_caller_left_them_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with started(tmp_path, "ant") as admin:
            await admin.call("Follow", off=True)
            await admin.call("Canary", off=True)
    lines = [record for record in caplog.records if record.getMessage().startswith("admin: ")]
    assert [record.getMessage().partition(" by ")[0] for record in lines] == [
        "admin: follow 'ant' off",
        "admin: canary 'ant' off",
    ]
    assert [(vars(record)["policy"], vars(record)["off"]) for record in lines] == [("ant", True), ("ant", True)]


async def test_the_only_policy_need_not_be_named(tmp_path: Path) -> None:
    async with started(tmp_path, "bee") as admin:
        assert (await admin.call("Switch", version="8")).policy.live_version == "8"
        assert (await admin.call("Rollback")).policy.live_version == "7"


REFUSALS: list[tuple[str, dict[str, str], tuple[str, str, str]]] = [
    (
        "Load",
        {"policy": "ant", "version": "3000"},
        ("FAILED_PRECONDITION", "version_refused", "params/x has changed since it was written"),
    ),
    (
        "Load",
        {"policy": "ant", "version": "10000"},
        ("NOT_FOUND", "unknown_version", "policy ant has no version 10000 in .*; loaded are: 1000, 2000"),
    ),
    (
        "Switch",
        {"policy": "cat", "version": "1"},
        ("NOT_FOUND", "unknown_policy", "there is no policy 'cat'; there are: ant, bee"),
    ),
    (
        "Unload",
        {"policy": "ant", "version": "2000"},
        ("FAILED_PRECONDITION", "version_is_live", "version 2000 of ant is live; switch to another one"),
    ),
    (
        "Rollback",
        {"policy": "bee"},
        ("FAILED_PRECONDITION", "no_previous", "no former live version of bee is loaded; switch to a version"),
    ),
    (
        "Follow",
        {"policy": "bee"},
        (
            "FAILED_PRECONDITION",
            "fixed_version",
            "version 7 of bee is wanted by --versions, so there is none to follow",
        ),
    ),
    ("Rollback", {}, ("INVALID_ARGUMENT", "invalid_request", "a policy must be named; there are: ant, bee")),
    (
        "Switch",
        {"policy": "ant"},
        ("INVALID_ARGUMENT", "invalid_request", "a version must be named; version 2000 of ant is live"),
    ),
    *(
        (
            "Switch",
            {"policy": "ant", "version": version},
            ("NOT_FOUND", "unknown_version", "policy ant has no version '.*'; versions are numbers, such as 2000"),
        )
        for version in ("latest", "-1", "+1", "01", "1 ", "1_0", "٣", "9" * 19, "9" * 5000)
    ),
]


@pytest.mark.parametrize(("method", "fields", "refusal"), REFUSALS, ids=lambda part: str(part)[:40])
async def test_a_refusal_has_a_status_a_reason_and_a_sentence(
    admin: Admin, method: str, fields: dict[str, Any], refusal: tuple[str, str, str]
) -> None:
    with refused(*refusal):
        await admin.call(method, **fields)
    assert admin.count(method.lower(), refusal[1]) == 1
    assert (await admin.call("Status")).policies == [ENCODED_ANT, ENCODED_BEE], "nothing has changed"


async def test_what_the_machine_lacks_is_no_fault_of_the_version(admin: Admin) -> None:
    admin.decisions.host.failure = StartupError("cannot load it: too little memory")
    with refused("ABORTED", "busy", "cannot load it: too little memory; try again later"):
        await admin.call("Load", policy="ant", version="2500")


@pytest.mark.parametrize(
    "method", ["Status", "Load", "Unload", "Switch", "Rollback", "Follow", "Canary", "Shadow", "Drain"]
)
async def test_malformed_bytes_are_refused(admin: Admin, method: str) -> None:
    call = admin.channel.unary_unary(f"/kilolayer.v1.PolicyAdmin/{method}")
    expected = f"the 2 bytes of the request are not a kilolayer.v1.{method}Request message"
    with refused("INVALID_ARGUMENT", "invalid_request", expected):
        await call(b"\xff\xff", timeout=10)
    assert admin.count(method.lower(), "invalid_request") == 1
    assert admin.drained == 0


async def test_an_action_goes_on_when_its_caller_leaves(admin: Admin, log: io.StringIO) -> None:
    admin.decisions.host.may_load.clear()
    request = pb.SwitchRequest(policy="ant", version="2500")
    call = admin.stub.Switch(request, timeout=10, metadata=[("kilolayer-admin-user", "ann")])
    async with asyncio.timeout(10):
        await admin.decisions.host.loading.wait()
        call.cancel()
        await admin.call("Status")  # the server has seen the cancellation
        admin.decisions.host.may_load.set()
        while admin.decisions.live("ant") != 2500:  # noqa: ASYNC110  driven by the server's own turns
            await asyncio.sleep(0.001)
    assert [(line["action"], line["user"], line["outcome"]) for line in lines(log)] == [("switch", "ann", "ok")]
    assert admin.count("switch", "ok") == 1


async def test_an_action_that_hangs_is_cancelled_when_the_server_stops(tmp_path: Path, log: io.StringIO) -> None:
    async with started(tmp_path, "ant") as admin:
        admin.decisions.publish("ant", 2500)
        admin.decisions.host.may_load.clear()
        call = admin.stub.Load(pb.LoadRequest(version="2500"), timeout=10)
        async with asyncio.timeout(10):
            await admin.decisions.host.loading.wait()
            call.cancel()
            await admin.server.stop()
        assert admin.count("load", "stopped") == 1
    assert [line["outcome"] for line in lines(log)] == ["stopped"]


@pytest.mark.parametrize("failure", [ValueError("a secret of the library"), asyncio.CancelledError("a secret")])
async def test_the_text_of_a_foreign_exception_stays_in_the_log(
    admin: Admin, log: io.StringIO, failure: BaseException
) -> None:
    admin.decisions.host.failure = failure
    with refused("INTERNAL", "internal", "the server failed on this call; its log says why"):
        await admin.call("Switch", policy="ant", version="2500")
    (line,) = lines(log)
    assert (line["level"], line["outcome"]) == ("ERROR", "internal")
    assert "a secret" in line["exc_info"]
    assert admin.count("switch", "internal") == 1


async def test_an_action_is_one_line_with_who_and_what(admin: Admin, log: io.StringIO) -> None:
    await admin.call("Switch", policy="ant", version="2500")
    with contextlib.suppress(grpc.aio.AioRpcError):
        await admin.call("Switch", policy="ant", version="3000")
    await admin.stub.Rollback(pb.RollbackRequest(policy="ant"), timeout=10)
    await admin.call("Status")
    switched, failed, rolled_back = lines(log)
    assert re.fullmatch(r"admin: switch 'ant' '2500' by 'ann' at unix: ok after \d.\d{3} s", switched["message"])
    facts = {"policy": "ant", "version": "2500", "user": "ann", "peer": "unix", "outcome": "ok", "level": "INFO"}
    assert facts.items() <= switched.items()
    assert 0 <= switched["seconds"] < 10
    assert (failed["level"], failed["outcome"]) == ("WARNING", "version_refused")
    assert failed["message"].endswith(f" s: {DAMAGE}")
    assert rolled_back["message"].startswith("admin: rollback 'ant' by an unnamed caller at unix: ok after ")
    assert rolled_back["user"] == ""


async def test_words_of_a_caller_do_not_break_the_log_and_are_no_labels(admin: Admin, log: io.StringIO) -> None:
    rude = "ann\x1b[2J\n" + "x" * 10_000
    with contextlib.suppress(grpc.aio.AioRpcError):
        metadata = [("kilolayer-admin-user", "'; ann " + "y" * 5000)]
        request = pb.SwitchRequest(policy=rude, version=rude)
        await admin.stub.Switch(request, timeout=10, metadata=metadata)
    (line,) = lines(log)
    assert line["policy"] == r"ann\x1b[2J\n" + "x" * 56 + "..."
    assert line["user"] == "'; ann " + "y" * 57 + "..."
    assert len(json.dumps(line)) < 1500
    labels = [sample.labels for metric in admin.metrics.collect() for sample in metric.samples]
    assert {label["action"] for label in labels} == {"switch"}
    assert {label["outcome"] for label in labels} == {"unknown_policy"}


async def test_only_the_user_can_connect(admin: Admin) -> None:
    assert admin.server.addresses() == {"admin": f"unix:{admin.address.path}"}
    assert admin.address.path.lstat().st_mode == stat.S_IFSOCK | 0o600
    assert admin.address.path.parent.lstat().st_mode == stat.S_IFDIR | 0o700


async def test_the_file_is_gone_when_the_server_has_stopped(tmp_path: Path) -> None:
    async with started(tmp_path, "ant") as admin:
        assert admin.address.path.exists()
    assert list(admin.address.path.parent.iterdir()) == []


async def test_the_socket_of_a_killed_server_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "kilolayer").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(tmp_path / "kilolayer/admin.sock"))
    async with started(tmp_path, "ant") as admin:
        assert (await admin.call("Status")).policies[0].live_version == "2000"


async def test_the_socket_of_a_living_server_is_refused_and_goes_on(tmp_path: Path, admin: Admin) -> None:
    second = Admin(tmp_path / "second", "bee", sockets=tmp_path)
    with pytest.raises(StartupError) as error:
        await second.server.start()
    assert str(error.value) == (
        f"--admin: cannot listen on {admin.address}: another program listens there; stop it, or choose another path;"
        " --admin off serves without this address"
    )
    await second.channel.close()
    assert len((await admin.call("Status")).policies) == 2


@pytest.mark.parametrize("kind", ["open to others", "a link", "a file"])
async def test_a_folder_that_others_can_use_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "kilolayer"
    if kind == "open to others":
        folder.mkdir()
        folder.chmod(0o750)
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to("elsewhere")
    else:
        folder.write_text("")
    server = Admin(tmp_path, "ant")
    with pytest.raises(StartupError, match=str(folder)):
        await server.server.start()
    await server.channel.close()
    assert not server.address.path.exists()


async def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    server = Admin(tmp_path, "ant", sockets=tmp_path / "nowhere")
    with pytest.raises(StartupError, match="^--admin: .* for the admin socket: No such file or directory; --admin off"):
        await server.server.start()
    await server.channel.close()


async def test_a_folder_that_the_operator_names_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    address = UnixAddress(folder / "a.sock")
    server = AdminServer(
        Decisions(tmp_path, "ant").deployment, address, drain=lambda: None, collectors=CollectorRegistry()
    )
    await server.start()
    assert address.path.lstat().st_mode == stat.S_IFSOCK | 0o600
    await server.stop()


def test_the_admin_server_and_the_supervisor_import_no_jax() -> None:
    """With --workers both are in one process, which would need memory and seconds for nothing."""
    program = "import sys, serving.api.admin_server, serving.workers.supervisor; print('jax' in sys.modules)"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False
    )
    assert done.stdout == "False\n", done.stderr
