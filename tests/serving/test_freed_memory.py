"""When a server gives freed memory back."""

from serving.telemetry.freed_memory import FreedMemory

MIB = 1 << 20


def trims(*held_mib: int) -> list[int]:
    """Return the numbers of the checks that trim, for what is held at each check."""
    memory = FreedMemory()
    return [number for number, held in enumerate(held_mib) if memory.is_due(held * MIB)]


def test_memory_is_trimmed_once_after_a_peak() -> None:
    assert trims(0, 64, 200, 0, 0, 0, 0) == [4]
    assert trims(64, 16, 16, 16) == [2]


def test_memory_is_not_trimmed_without_a_peak_or_while_much_is_held() -> None:
    assert trims(0, 63, 0, 0, 0) == []
    assert trims(200, 51, 51, 51) == []
    assert trims(200, 0, 100, 0, 100) == []  # a quiet second between two bursts


def test_every_peak_is_trimmed() -> None:
    assert trims(100, 0, 0, 100, 0, 0) == [2, 5]
    assert trims(400, 90, 90, 90, 90, 10, 10) == [2, 6]  # what stays is the next peak
