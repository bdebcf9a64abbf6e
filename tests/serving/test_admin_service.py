"""The service PolicyAdmin, over gRPC at a Unix socket: what each method does and refuses."""

from pathlib import Path
from typing import Any

import pytest

from kilolayer.v1 import admin_pb2 as pb
from serving.errors import StartupError
from tests.serving.admin_bench import Admin, refused, started

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
    reply = await admin.call("Follow", policy="ant", off=True)
    assert (reply.policy.following, reply.next_version) == (False, "")
    reply = await admin.call("Follow", policy="ant")
    assert (reply.policy.following, reply.policy.live_version, reply.next_version) == (True, "2000", "2500")


async def test_drain_begins_to_stop_the_server(admin: Admin) -> None:
    assert await admin.call("Drain") == pb.DrainResponse()
    assert admin.drained == 1


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
        (
            "NOT_FOUND",
            "unknown_version",
            "policy ant has no version 10000 in .*; the newest ones are: 1000, 2000, 2500, 3000",
        ),
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


@pytest.mark.parametrize("method", METHODS)
async def test_malformed_bytes_are_refused(admin: Admin, method: str) -> None:
    call = admin.channel.unary_unary(f"/kilolayer.v1.PolicyAdmin/{method}")
    expected = f"the 2 bytes of the request are not a kilolayer.v1.{method}Request message"
    with refused("INVALID_ARGUMENT", "invalid_request", expected):
        await call(b"\xff\xff", timeout=10)
    assert admin.count(method.lower(), "invalid_request") == 1
    assert admin.drained == 0
