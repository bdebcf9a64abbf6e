"""Tokens: found in constant time, and limited by a rate."""

import hmac

import pytest

from serving.access.roles import Role
from serving.access.tokens import Caller, Tokens
from tests.serving.access.token_samples import ONE_FOR_EACH_ROLE, secret, token


@pytest.mark.parametrize("name", ["of-act", "of-admin", "unknown"])  # the first, the last and none
def test_every_token_is_compared_by_its_digest(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def count(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", count)
    found = Tokens(ONE_FOR_EACH_ROLE).find(secret(name).encode())
    assert (found.token.name if found else "unknown") == name
    assert [one for one, _ in compared] == [each.digest for each in ONE_FOR_EACH_ROLE]
    assert {len(other) for _, other in compared} == {32}


def test_a_rate_allows_the_calls_of_one_second_and_then_its_share() -> None:
    caller = Caller(token("a", Role.ACT, calls_per_second=10))
    assert [caller.take(100.0) for _ in range(11)] == [True] * 10 + [False]
    assert [caller.take(100.05), caller.take(100.1), caller.take(100.1)] == [False, True, False]
    assert [caller.take(100.1 + 0.1 * tick) for tick in range(1, 51)] == [True] * 50  # exactly at its rate
    assert [caller.take(200.0) for _ in range(11)] == [True] * 10 + [False]  # no more after a long pause


def test_a_rate_below_one_allows_one_call_at_a_time() -> None:
    caller = Caller(token("a", Role.ACT, calls_per_second=0.5))
    assert [caller.take(now_s) for now_s in (0.0, 1.0, 1.9, 2.0, 3.0)] == [True, False, False, True, False]


def test_without_a_rate_every_call_is_allowed() -> None:
    caller = Caller(token("a", Role.ACT))
    assert all(caller.take(0.0) for _ in range(10_000))


def test_a_token_that_stays_keeps_what_it_has_used_of_its_rate_and_takes_its_new_roles() -> None:
    tokens = Tokens([token("a", Role.ACT, calls_per_second=2), token("b", Role.ACT)])
    first, second = (tokens.find(secret(name).encode()) for name in "ab")
    assert first
    assert second
    assert [first.take(0.0) for _ in range(3)] == [True, True, False]
    tokens.replace([token("a", Role.REPORT, calls_per_second=1)])
    assert tokens.find(secret("a").encode()) is first
    assert (first.token.roles, first.is_removed, first.take(0.0)) == ({Role.REPORT}, False, False)
    assert tokens.find(secret("b").encode()) is None
    assert second.is_removed
    assert len(tokens) == 1


def test_a_token_that_comes_back_is_a_new_one() -> None:
    tokens = Tokens([token("a", Role.ACT)])
    before = tokens.find(secret("a").encode())
    tokens.replace([token("b", Role.ACT)])
    tokens.replace([token("a", Role.ACT)])
    after = tokens.find(secret("a").encode())
    assert before
    assert after
    assert before is not after
    assert (before.is_removed, after.is_removed) == (True, False)


def test_the_text_of_a_token_holds_no_digest() -> None:
    each = token("a", Role.ACT)
    assert "digest" not in repr(each)
    assert str(each.digest) not in repr(each)
