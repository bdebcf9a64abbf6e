"""What servers must survive while versions are published, as functions of how often, like `scenarios`.

Each starts real server processes, checks what must hold, and returns what it measured.
"""

import asyncio
import dataclasses
import random
import re
import shutil
import threading
import urllib.request
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from kilolayer.v1 import policy_pb2 as pb
from tests.clients.fakes import free_port
from tests.faults.bundle_mutator import Mutant
from tests.faults.conftest import publish
from tests.faults.remote_admin import RemoteAdmin, versions_of_robots, wait_until
from tests.faults.retrying_caller import Outcome, RetryingCallers
from tests.faults.supervised import Supervised, serve_command

READY = r"ready: grpc=(\S+) metrics=(\S+) admin=(\S+) policies="
KNOWN = pb.ActRequest(state=[0.5, -1, 2, 0], goal=[1, 1])
INCOMPLETE = frozenset({"delete manifest.json", "link manifest.json to nothing"})
"""Mutants without a manifest: a server waits for it, because whoever copies a version writes it last."""
REASONS = frozenset({"manifest", "files", "hash", "spec", "arrays", "probes"})
_POLLS = 3  # at all versions, after every mutant is refused
_START_S = 5.0  # versions are published during so much of a start


@dataclasses.dataclass(frozen=True)
class Rollbacks:
    """The seconds that a server logged for its actions."""

    taken_s: list[float]  # of every rollback
    loading_s: float  # of a switch to a version that was not loaded


def publish_mutants(policies: Path, folder: Path, mutants: Sequence[Mutant]) -> tuple[Counter[str], Outcome]:
    """Publish damaged versions while version 1000 is live and callers call. Return the reasons, and the calls.

    Each is refused once, by name and reason, in the log, in the status and in the metric, however often the server
    polls. No call fails, and every answer has the same bytes.
    """
    served = folder / "served"
    shutil.copytree(policies / "1000", served / "1000")
    made = dict(zip(count(5001), mutants, strict=False))
    refusable = {version for version, mutant in made.items() if mutant.name not in INCOMPLETE}
    command = serve_command(served, max_batch_rows=1, max_queue_age_s=60.0)  # the machine may be busy
    with Supervised(command, log=folder / "log") as server:
        address, metrics, socket = server.wait_for(READY)
        admin = RemoteAdmin(socket)

        def refused() -> dict[int, str]:
            return {int(each.version): each.reason for each in admin.status().refused}

        def about() -> str:
            return f"{len(refused())} of {len(refusable)} are refused"

        async def refuse_all() -> Outcome:
            async with RetryingCallers([address], request=KNOWN) as callers:
                await callers.until_answered(10)
                admin.follow(on=False)  # until all are damaged
                await asyncio.to_thread(_damage, policies / "1000", served, made)
                admin.follow(on=True)
                await asyncio.to_thread(wait_until, lambda: refused().keys() >= refusable, about)
                await callers.until_answered(callers.outcome.answered + 10)
                return await callers.stop()

        outcome = asyncio.run(refuse_all())
        reasons = refused()
        assert reasons.keys() == refusable
        for poll in range(_POLLS):  # a sound version below the mutants is found after a poll of each of them
            publish(served, 2000 + poll)
            wait_until(lambda: admin.decisions().live == 2000 + poll, lambda: str(admin.decisions()))  # noqa: B023
        with urllib.request.urlopen(metrics, timeout=60) as page:
            text = page.read().decode()
        log = server.logged()
    lines = re.findall(
        r"WARNING version (\d+) of point_u_maze is refused \((\w+)\), and version 1000 stays live: \S", log
    )
    assert len(lines) == log.count(" WARNING ") == len(refusable), log[-3000:]
    assert {int(version): reason for version, reason in lines} == reasons
    by_reason = Counter(reasons.values())
    assert set(by_reason) <= REASONS
    counted = re.findall(r'^kilolayer_bundles_rejected_total{reason="(\w+)"} (\S+)$', text, re.MULTILINE)
    assert {reason: float(number) for reason, number in counted} == by_reason
    assert (outcome.lost, outcome.refused, outcome.wrong) == (Counter(), Counter(), 0)
    return by_reason, outcome


def _damage(version: Path, served: Path, mutants: dict[int, Mutant]) -> None:
    for number, mutant in mutants.items():
        mutant.apply(Path(shutil.copytree(version, served / str(number))))


def publish_while_starting(folder: Path, *, starts: int, versions: int, seed: int = 0) -> int:
    """Publish versions at random moments while servers start, two at a time on one folder.

    Each ends up on the newest version, refuses none, and ends with exit code 0. Return how many servers had begun to
    serve before the last version of their round was published.
    """
    served, moments = folder / "served", random.Random(seed)
    publish(served, 1)
    pairs, newest, late = [range(first, min(first + 2, starts)) for first in range(0, starts, 2)], 1, 0
    for number, pair in enumerate(pairs, start=1):
        due = 1 + -(-versions * number // len(pairs))
        new = range(newest + 1, due + 1)
        with ExitStack() as stack:
            servers = [
                stack.enter_context(
                    Supervised(
                        serve_command(served, listen=f"127.0.0.1:{free_port()}", state_dir=folder / f"state-{each}"),
                        log=folder / f"log-{each}",
                    )
                )
                for each in pair
            ]
            publishing = threading.Thread(target=_publish_at, args=(served, new, moments))
            publishing.start()
            publishing.join()
            newest = due
            late += sum("ready: grpc=" in server.logged() for server in servers)
            for server in servers:
                address, _, socket = server.wait_for(READY)
                admin = RemoteAdmin(socket)
                wait_until(lambda: admin.decisions().live == newest, lambda: str(admin.decisions()))  # noqa: B023
                assert versions_of_robots(address, ["a"]) == {"a": str(newest)}
        for server in servers:
            assert [each.code for each in server.exits] == [0], server.logged()
            assert not re.search(r" (WARNING|ERROR|CRITICAL) ", server.logged()), server.logged()
    return late


def _publish_at(served: Path, versions: Sequence[int], moments: random.Random) -> None:
    for version in versions:
        threading.Event().wait(moments.uniform(0, _START_S / len(versions)))
        publish(served, version)


def roll_back(policies: Path, folder: Path, *, workers: int, times: int) -> Rollbacks:
    """Roll a server back several times.

    After each, the next answers name the former version, over a connection for each of 24 robots.
    """
    served = folder / "served"
    shutil.copytree(policies / "1000", served / "1000")
    publish(served, 2000)
    command = serve_command(served, workers=workers, state_dir=folder / "state")
    robots = [f"robot {number}" for number in range(24)]
    with Supervised(command, log=folder / "log") as server:
        address, _, socket = server.wait_for(READY)
        admin = RemoteAdmin(socket)
        for _ in range(times):
            admin.switch(1000)
            assert admin.switch(2000).live == 2000
            assert admin.rollback().live == 1000
            assert versions_of_robots(address, robots) == dict.fromkeys(robots, "1000")
        rollback, switch = (
            re.findall(
                rf"admin: {action} 'point_u_maze'.* by an unnamed caller at unix: ok after (\S+) s", server.logged()
            )
            for action in ("rollback", "switch")
        )
    assert len(rollback) == times
    return Rollbacks([float(each) for each in rollback], loading_s=float(switch[0]))
