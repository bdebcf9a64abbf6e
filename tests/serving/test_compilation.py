"""In which order the batch sizes of a policy are compiled."""

from serving.engine.engine import Kind
from serving.policies.compilation import stages


def test_one_row_comes_first_then_the_largest_then_the_others() -> None:
    first, largest, rest = stages({Kind.ACT: (1, 2, 4, 8), Kind.SAMPLE: (1, 4, 8)})
    assert first == [(Kind.ACT, 1), (Kind.SAMPLE, 1)]
    assert largest == [(Kind.ACT, 8), (Kind.SAMPLE, 8)]
    assert rest == [(Kind.ACT, 2), (Kind.ACT, 4), (Kind.SAMPLE, 4)]


def test_for_batches_of_one_row_there_is_nothing_else() -> None:
    assert stages({Kind.ACT: (1,), Kind.SCORE: (1,)}) == ([(Kind.ACT, 1), (Kind.SCORE, 1)], [], [])
