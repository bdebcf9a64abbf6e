"""Guard: which calls are refused, what their callers get, and what the log says."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter

from serving.access.guard import Guard
from serving.access.refusals import Refusals
from serving.access.roles import Role
from serving.access.tokens import Tokens
from serving.errors import PermissionDeniedError, RateLimitError, ServingError, UnauthenticatedError
from tests.serving.access.token_samples import bearer, secret, token

ACT = "/kilolayer.v1.Policy/Act"
PEER = "ipv4:10.0.0.7:4242"
NOT_ALLOWED = "the call is not allowed; it needs a token with the method's role, and the log says more"
GOOD = f"Bearer {secret('a')}"


class Bench:
    """A guard with the token a, of the role act, whose clock stands still until a test moves it."""

    def __init__(self, **of_a: Any) -> None:
        self.now_s = 100.0
        self.tokens = Tokens([token("a", Role.ACT, **of_a)])
        collectors = CollectorRegistry()
        counter = Counter("refused", "", ("reason",), registry=collectors)
        self.guard = Guard(self.tokens, Refusals(counter.labels, clock=self.clock), clock=self.clock)
        self._collectors = collectors

    def clock(self) -> float:
        return self.now_s

    def refusal(self, *metadata: tuple[str, str | bytes], role: Role = Role.ACT) -> ServingError:
        assert self.guard.check(role, metadata) is None
        with pytest.raises(ServingError) as error:
            self.guard.admit(role, metadata, method=ACT, peer=PEER)
        return error.value

    def counts(self) -> dict[str, float]:
        """The refused calls by cause, without those causes that have none."""
        samples = [sample for family in self._collectors.collect() for sample in family.samples]
        totals = {each.labels["reason"]: each.value for each in samples if each.name == "refused_total"}
        assert set(totals) == {"missing", "malformed", "unknown", "removed", "role", "rate_limit"}
        return {cause: total for cause, total in totals.items() if total}


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("header", [GOOD, f"bearer {secret('a')}", f"BEARER   {secret('a')}"])
def test_a_good_token_is_admitted(bench: Bench, header: str) -> None:
    metadata = [("user-agent", "x"), ("authorization", header), ("x-other-bin", b"\0")]
    for caller in (
        bench.guard.check(Role.ACT, metadata),
        bench.guard.admit(Role.ACT, metadata, method=ACT, peer=PEER),
        bench.guard.open_stream(Role.ACT, metadata, method=ACT, peer=PEER).caller,
    ):
        assert caller
        assert caller.token.name == "a"
    assert bench.counts() == {}


REFUSED: dict[str, Sequence[tuple[tuple[str, str | bytes], ...]]] = {
    "missing": [(), (("x", GOOD),), (("Authorization", GOOD),)],  # HTTP/2 has no names in capitals
    "malformed": [
        (("authorization", value),)
        for value in (
            "",
            "Bearer",
            "Bearer ",
            secret("a"),
            f"Basic {secret('a')}",
            f"{GOOD} x",
            f"{GOOD}\n",
            f" {GOOD}",
        )
    ]
    + [(("authorization", GOOD.encode()),), (("authorization", "Bearer \ud800é"),)]
    + [(("authorization", GOOD), ("authorization", GOOD))],
    "unknown": [bearer("b"), (("authorization", GOOD[:-1]),), (("authorization", f"{GOOD}x"),)],
}


@pytest.mark.parametrize(
    ("cause", "metadata"), [(cause, each) for cause, several in REFUSED.items() for each in several]
)
def test_every_caller_without_a_good_token_gets_the_same_text(
    bench: Bench, cause: str, metadata: tuple[tuple[str, str | bytes], ...], caplog: pytest.LogCaptureFixture
) -> None:
    error = bench.refusal(*metadata)
    assert isinstance(error, UnauthenticatedError)
    assert str(error) == NOT_ALLOWED
    assert bench.counts() == {cause: 1}
    (record,) = caplog.records
    assert (vars(record)["cause"], vars(record)["peer"], vars(record)["method"]) == (cause, PEER, ACT)
    assert secret("a")[4:12] not in str(vars(record))


def test_a_token_without_the_role_gets_the_same_text_and_the_log_names_it(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    error = bench.refusal(*bearer("a"), role=Role.ADMIN)
    assert isinstance(error, PermissionDeniedError)
    assert str(error) == NOT_ALLOWED
    assert bench.counts() == {"role": 1}
    assert caplog.messages == [
        f"refused {ACT} from {PEER} with the token a: the token does not have the role of the method"
    ]
    assert vars(caplog.records[0])["token_name"] == "a"


def test_calls_beyond_the_rate_are_told_the_rate() -> None:
    bench = Bench(calls_per_second=2)
    metadata = bearer("a")
    assert bench.guard.check(Role.ACT, metadata)
    bench.guard.admit(Role.ACT, metadata, method=ACT, peer=PEER)
    error = bench.refusal(*metadata)
    assert isinstance(error, RateLimitError)
    assert str(error) == "the token made more calls than its rate of 2 calls per second"
    assert bench.counts() == {"rate_limit": 1}
    bench.now_s += 0.5
    assert bench.guard.check(Role.ACT, metadata)


def test_a_stream_counts_its_messages_and_not_itself() -> None:
    bench = Bench(calls_per_second=1)
    for _ in range(2):
        bench.guard.open_stream(Role.ACT, bearer("a"), method=ACT, peer=PEER)
    access = bench.guard.open_stream(Role.ACT, bearer("a"), method=ACT, peer=PEER)
    access.count()
    with pytest.raises(RateLimitError):
        access.count()
    access.check()


@pytest.mark.parametrize("change", ["removed", "role"])
def test_an_open_stream_notices_that_its_token_is_not_accepted_any_more(
    bench: Bench, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    access = bench.guard.open_stream(Role.ACT, bearer("a"), method=ACT, peer=PEER)
    access.check()
    bench.tokens.replace([token("a", Role.REPORT)] if change == "role" else [])
    with pytest.raises(PermissionDeniedError if change == "role" else UnauthenticatedError, match=f"^{NOT_ALLOWED}$"):
        access.check()
    assert bench.counts() == {change: 1}
    assert "with the token a" in caplog.messages[0]


def test_a_flood_of_refused_calls_is_one_line_each_ten_seconds_for_each_cause(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for tick in range(1000):
        bench.now_s = 100 + tick * 0.02  # 20 s in all
        bench.refusal()
        if tick == 10:
            bench.refusal(*bearer("b"))
    assert bench.counts() == {"missing": 1000, "unknown": 1}
    start = f"refused {ACT} from {PEER}: "
    more = "; 499 more calls were refused for this cause since its last line"
    assert caplog.messages == [
        f"{start}the call has no token",
        f"{start}the token is unknown",
        f"{start}the call has no token{more}",
    ]
    assert [vars(record)["more"] for record in caplog.records] == [0, 0, 499]
