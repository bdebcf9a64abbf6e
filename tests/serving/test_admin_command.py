"""kilolayer-admin, against an admin server at a Unix socket: what it prints, and its exit codes."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry

from kilolayer.v1 import admin_pb2 as pb
from serving import admin
from serving.admin_replies import describe
from serving.api.admin_server import AdminServer
from serving.errors import StartupError
from serving.sockets import TcpAddress, UnixAddress
from serving.user_folders import admin_address
from tests.serving.decisions import DAMAGE, Decisions

REPOSITORY = Path(__file__).parents[2]
TABLE = """
POLICY  LIVE  PREVIOUS  LOADED     WANTED  FOLLOWING
ant     2000  1000      1000 2000  latest  yes
bee     7     -         7          7       no
refused: ant 3000 (hash): params/x has changed since it was written
"""
Run = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def decisions(tmp_path: Path) -> Decisions:
    decisions = Decisions(tmp_path / "policies", "bee", "ant")
    await decisions.publish_more_of_ant()
    return decisions


@pytest.fixture
async def server(tmp_path: Path, decisions: Decisions, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[list[str]]:
    """A server on port 50061 of this user; how often it was drained is the length of the list."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    drained: list[str] = []
    started = AdminServer(
        decisions.deployment,
        admin_address(TcpAddress("127.0.0.1", 50061)),
        drain=lambda: drained.append("drained"),
        collectors=CollectorRegistry(),
        owns_folder=True,
    )
    await started.start()
    yield drained
    await started.stop()


@pytest.fixture
def run(server: list[str], capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command for that server; return its exit code, and what it printed to stdout and to stderr."""

    async def run_command(command: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(admin.main, [*command.split(), "--port", "50061"])
        printed, error = capsys.readouterr()
        return code, printed, error

    return run_command


async def test_status_is_a_table(run: Run) -> None:
    assert await run("status") == (0, TABLE.lstrip(), "")


async def test_status_of_one_policy_as_json_is_the_reply(run: Run) -> None:
    code, printed, _ = await run("status bee --json")
    assert code == 0
    assert json.loads(printed) == {
        "policies": [
            {
                "policy": "bee",
                "live_version": "7",
                "previous_versions": [],
                "loaded_versions": ["7"],
                "following": False,
                "wanted": "7",
                "refused": [],
                "rolled_back_versions": [],
            }
        ]
    }


async def test_each_action_says_what_has_changed(run: Run, decisions: Decisions) -> None:
    for command, expected in {
        "load ant 2500": "version 2500 of ant is loaded; version 2000 is live",
        "switch ant --off-by-one 2500": "",
        "switch ant 2500": "version 2500 of ant is live; new versions are not taken up",
        "rollback ant": "version 2000 of ant is live in place of version 2500; new versions are not taken up",
        "status bee": "POLICY  LIVE  PREVIOUS  LOADED  WANTED  FOLLOWING\nbee     7     -         7       7       no",
        "status ant": (
            "POLICY  LIVE  PREVIOUS  LOADED          WANTED  FOLLOWING\n"
            "ant     2000  1000      1000 2000 2500  latest  no\n"
            "rolled back: ant 2500, not taken up by following\n"
            "refused: ant 3000 (hash): params/x has changed since it was written"
        ),
        "unload ant 2500": "version 2500 of ant is not loaded any more",
        "follow ant": (
            "ant takes up new versions by the rule latest: version 2000, which is live, is the one that it wants now;"
            " rolled back, so not taken up: 2500"
        ),
        "follow ant --off": "ant takes up no new versions; version 2000 is live",
    }.items():
        code, printed, _ = await run(command)
        assert (code, printed) == ((0, f"{expected}\n") if expected else (2, "")), command
    assert decisions.live("ant") == 2000


async def test_follow_names_the_version_that_is_taken_up_now(run: Run) -> None:
    assert await run("follow ant") == (
        0,
        "ant takes up new versions by the rule latest: version 2500 is taken up now if it passes every check; until"
        " then, version 2000 is live\n",
        "",
    )
    _, printed, _ = await run("follow ant --json")
    assert json.loads(printed)["next_version"] == "2500"
    _, printed, _ = await run("follow ant --off --json")
    assert json.loads(printed)["next_version"] == ""
    unknown = pb.FollowResponse(
        policy=pb.PolicyStatus(policy="ant", live_version="2000", following=True, wanted="best")
    )
    assert describe("follow", unknown, version="") == (
        "ant takes up new versions by the rule best: its versions cannot be read now, see the server's log; version"
        " 2000 is live"
    )


async def test_canaries_and_shadows_say_what_has_changed_and_are_below_the_table(run: Run) -> None:
    for command, expected in {
        "canary ant 2500": (
            "canary: ant 2500 answers 0.1 of the robots, and does not decide; version 2000 answers the others"
        ),
        "canary ant 2500 --share 0.2 --decide --false-rollback-rate 0.01 --min-episodes 9 --margin 0.1": (
            "canary: ant 2500 answers 0.2 of the robots; 0 episodes, 0 of the live version; evidence that it is better"
            " 1 of 20, worse 1 of 100; version 2000 answers the others"
        ),
        "shadow ant 2500 --share 0.5": "shadow: ant 2500 for 0.5 of the rows",
        "status ant": (
            "POLICY  LIVE  PREVIOUS  LOADED          WANTED  FOLLOWING\n"
            "ant     2000  1000      1000 2000 2500  latest  no\n"
            "canary: ant 2500 answers 0.2 of the robots; 0 episodes, 0 of the live version; evidence that it is better"
            " 1 of 20, worse 1 of 100\n"
            "shadow: ant 2500 for 0.5 of the rows\n"
            "refused: ant 3000 (hash): params/x has changed since it was written"
        ),
        "shadow ant --off": "ant has no shadow",
        "canary ant --off": "version 2000 of ant answers all robots; new versions are not taken up",
        "canary ant 2500 --share 0.1": (
            "canary: ant 2500 answers 0.1 of the robots, and does not decide; version 2000 answers the others"
        ),
        "rollback ant": (
            "the canary of ant has ended: version 2000, which stays live, answers all robots, and version 2500 none;"
            " new versions are not taken up"
        ),
    }.items():
        assert await run(command) == (0, f"{expected}\n", ""), command


def test_what_is_loaded_after_a_restart_is_said() -> None:
    loading = pb.PolicyStatus(
        policy="ant",
        live_version="2000",
        canary=pb.CanaryStatus(version="2500", share=0.25, loading=True),
        shadow=pb.ShadowStatus(version="2600", share=0.5, loading=True),
    )
    table = describe("status", pb.StatusResponse(policies=[loading]), version="")
    assert table.splitlines()[2:] == [
        "canary: ant 2500 is being loaded after the restart, then it answers 0.25 of the robots",
        "shadow: ant 2600 is being loaded after the restart, for 0.5 of the rows",
    ]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("canary ant", "canary needs a version, which is a number, got 'ant'"),
        ("canary ant 2500 --share 2", "the share of a canary must be above 0 and at most 1, got 2.0"),
        ("switch ant 2500 --share 0.1", "--share goes with canary VERSION or shadow VERSION"),
        ("canary ant --off --share 0.1", "--share goes with canary VERSION or shadow VERSION"),
        ("shadow ant 2500 --decide", "--decide goes with canary VERSION"),
        ("canary ant 2500 --margin 0.1", "--margin goes with --decide"),
        ("canary ant 2500 --decide --margin -0.1", "margin must be at least 0 and below 1, such as 0.02; got -0.1"),
        ("canary ant 2500 --decide --false-promotion-rate 0", "--false-promotion-rate must be above 0, got 0.0"),
        ("canary ant 2500 --decide --min-episodes -1", "--min-episodes must be above 0, got -1"),
        ("switch ant 2500 --off", "--off goes with follow, canary or shadow, got switch"),
    ],
)
async def test_options_that_do_not_fit_are_wrong_usage(run: Run, command: str, message: str) -> None:
    code, printed, error = await run(command)
    assert (code, printed) == (2, "")
    assert error.startswith(f"error: {message}")


async def test_drain_begins_to_stop_the_server(run: Run, server: list[str]) -> None:
    assert await run("drain") == (
        0,
        "the server refuses new requests, answers those that it has accepted, and exits\n",
        "",
    )
    assert server == ["drained"]


async def test_the_log_of_the_server_names_the_user(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin.pwd, "getpwuid", lambda _uid: type("Entry", (), {"pw_name": "añn"}))
    monkeypatch.setenv("SUDO_USER", "bo")
    with caplog.at_level("INFO"):
        await run("follow ant --off")
    assert caplog.messages[-1].startswith(r"admin: follow 'ant' off by 'a\\xf1n (sudo of bo)' at unix: ok after")


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("switch ant 3000", 1, DAMAGE),
        ("rollback bee", 1, "no former live version of bee is loaded; switch to a version"),
        ("status cat", 1, "there is no policy 'cat'; there are: ant, bee"),
        ("rollback", 2, "a policy must be named; there are: ant, bee"),
    ],
)
async def test_what_the_server_refuses_is_one_line(run: Run, command: str, code: int, message: str) -> None:
    assert await run(command) == (code, "", f"error: {message}\n")


async def test_names_of_files_do_not_command_the_terminal(run: Run, decisions: Decisions) -> None:
    decisions.host.failure = StartupError("a\x1b[2Jb\u2066c")
    assert await run("load ant 2500") == (1, "", "error: a\\x1b[2Jb\\u2066c; try again later\n")


async def test_a_change_that_takes_too_long_goes_on(run: Run, decisions: Decisions) -> None:
    decisions.host.may_load.clear()
    assert await run("switch ant 2500 --timeout-s 0.2") == (
        1,
        "",
        "error: no answer within 0.2 s; a change that has begun goes on, and kilolayer-admin status shows the result;"
        " if it does not, the server is stopped, blocked or overloaded, see its log and /healthz\n",
    )
    decisions.host.may_load.set()
    async with asyncio.timeout(10):
        while decisions.live("ant") != 2500:  # noqa: ASYNC110  driven by the server's own turns
            await asyncio.sleep(0.001)


async def test_the_text_of_another_failure_is_named(run: Run, decisions: Decisions) -> None:
    decisions.host.failure = ValueError("a secret")
    assert await run("load ant 2500") == (1, "", "error: the server failed on this call; its log says why\n")


USAGE = [
    ("stop", "argument ACTION: invalid choice: 'stop'"),
    ("", "the following arguments are required: ACTION"),
    ("switch", "switch needs a version, which is a number, got ''; such as kilolayer-admin switch point_u_maze 2000"),
    ("switch ant", "switch needs a version, which is a number, got 'ant'; such as"),
    ("switch ant 2500 1", "'1' is one word too many, the usage is switch [POLICY] VERSION; --help has more"),
    ("status ant 2500", "'2500' is one word too many, the usage is status [POLICY]; --help has more"),
    ("drain ant", "'ant' is one word too many, the usage is drain alone; --help has more"),
    ("rollback ant --off", "--off goes with follow, canary or shadow, got rollback"),
    ("status --port 0", "--port must be from 1 to 65535, got 0"),
    ("status --port x", "argument --port: invalid int value: 'x'; --help describes the usage"),
    ("status --timeout-s 0", "--timeout-s must be a positive number of seconds, got 0"),
    ("status --timeout-s nan", "--timeout-s must be a positive number of seconds, got nan"),
    ("status --timeout-s inf", "--timeout-s must be a positive number of seconds, got inf"),
    (
        "status --admin 127.0.0.1:50052",
        "--admin must be unix:PATH, as the server's ready line shows it, got '127.0.0.1",
    ),
    ("status --admin unix:", "--admin must name a path after unix:, such as"),
    ("status --js", "unrecognized arguments: --js; --help describes the usage"),
]


@pytest.mark.parametrize(("command", "message"), USAGE)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], command: str, message: str) -> None:
    assert admin.main(command.split()) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_a_server_that_does_not_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.sock"
    assert admin.main(["status", "--admin", f"unix:{path}"]) == 1
    expected = "its ready line has the address for --admin, and the port for --port"
    assert capsys.readouterr().err == (
        f"error: there is no server at unix:{path}, or it is still starting; {expected}\n"
    )


def test_a_server_that_does_not_answer_about_its_status_has_begun_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX) as stopped:
        stopped.bind(str(tmp_path / "a.sock"))
        stopped.listen()  # and accepts nothing
        assert admin.main(["status", "--admin", f"unix:{tmp_path}/a.sock", "--timeout-s", "0.2"]) == 1
    assert capsys.readouterr().err == (
        "error: no answer within 0.2 s; the server is stopped, blocked or overloaded, see its log and /healthz; or use"
        " a longer --timeout-s\n"
    )


def test_the_address_for_robots_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = grpc.server(ThreadPoolExecutor(1))  # without the admin service
    server.add_insecure_port(f"unix:{tmp_path}/a.sock")
    server.start()
    assert admin.main(["status", "--admin", f"unix:{tmp_path}/a.sock"]) == 1
    server.stop(None).wait(timeout=10)
    assert capsys.readouterr().err == (
        f"error: unix:{tmp_path}/a.sock does not take this command: it is the address for robots, or that of another"
        " program; the server's ready line has the address for --admin after admin=\n"
    )


def test_a_server_that_was_killed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.sock"
    path.write_text("")
    assert admin.main(["status", "--admin", f"unix:{path}"]) == 1
    assert capsys.readouterr().err == (
        f"error: cannot connect to {UnixAddress(path)}: its server has ended or is still starting, or it is another"
        " user's\n"
    )


def test_a_server_of_another_user_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_path: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "lstat", forbidden)
    assert admin.main(["status", "--admin", f"unix:{tmp_path}/a.sock"]) == 1
    assert capsys.readouterr().err.endswith("its server has ended or is still starting, or it is another user's\n")


def test_an_interrupted_command_says_that_a_change_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_parsed: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(admin, "_run", interrupt)
    assert admin.main(["switch", "2500"]) == 1
    assert capsys.readouterr().err == "error: stopped waiting; a change that has begun goes on\n"


def test_the_file_runs_as_a_program() -> None:
    """As in the image, where the command is not installed."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "serving/admin.py", "status", "extra", "words"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
    expected = "error: 'words' is one word too many, the usage is status [POLICY]; --help has more\n"
    assert (done.returncode, done.stderr) == (2, expected)
