"""Bytes held for connections: numbers worked out by hand, with a limit of 120 bytes."""

import random

from serving.api.held_bytes import HeldBytes


def test_a_connection_has_room_up_to_half_of_what_is_free_and_is_over_beyond_all_of_it() -> None:
    held = HeldBytes(120)
    one = held.connection("one")
    one.hold(40)
    assert one.has_room  # 80 are free, half of which is 40
    one.hold(1)
    assert not one.has_room  # 79 are free
    one.hold(19)
    assert not one.is_over  # it holds 60, and 60 are free
    one.hold(1)
    assert one.is_over  # 61, and 59 are free


def test_a_new_connection_finds_room_beside_full_ones() -> None:
    held = HeldBytes(120)
    one, two = held.connection("one"), held.connection("two")
    one.hold(60)
    two.hold(20)
    assert two.has_room  # 40 are free
    assert one.is_over
    one.release(20)
    assert not one.is_over  # 40, and 60 are free
    assert held.total == 60


def test_a_connection_without_bytes_is_forgotten() -> None:
    held = HeldBytes(120)
    one = held.connection("one")
    one.hold(7)
    assert held.connection("one") is one
    one.release(3)
    assert held.connection("one") is one
    assert one.released == 3
    one.release(4)
    assert (held.total, one.released) == (0, 7)
    assert held.connection("one") is not one


def test_connections_that_stop_when_they_are_over_never_exceed_the_limit() -> None:
    """Each takes steps of up to 5 bytes until it is over, as a call that is then ended: one step too far at most."""
    rng = random.Random(1)
    held = HeldBytes(1000)
    connections = [held.connection(str(number)) for number in range(20)]
    for connection in connections:
        connection.hold(1)
    for _ in range(5000):
        connection = rng.choice(connections)
        if not connection.is_over:
            connection.hold(rng.randint(1, 5))
        assert held.total <= 1000
    assert held.total > 900
