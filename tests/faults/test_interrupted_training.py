"""A few rounds of `make soak-training`, and what its comparison notices."""

from pathlib import Path

import numpy as np
import pytest

from tests.faults import interrupted_training

pytestmark = pytest.mark.slow  # eight processes of a run


@pytest.mark.timeout(3600)  # if the first seeds do not suffice
def test_a_run_that_is_killed_stopped_and_damaged_at_random_ends_as_one_left_alone(tmp_path: Path) -> None:
    reference = interrupted_training.run_to_the_end(tmp_path / "straight")
    for seed in range(1, 6):  # what is damaged depends on the speed of the machine too; usually one is enough
        ended = interrupted_training.interrupt(tmp_path / str(seed), rounds=6, seed=seed, reference=reference)
        if ended.counts["flipped bit"] + ended.counts["cut file"] and ended.counts["passed over"]:
            break
    else:
        pytest.fail("no snapshot was damaged and passed over")
    snapshot = ended.runs[0] / "snapshots" / str(2 * interrupted_training.EPOCHS) / "state.npz"
    with np.load(snapshot) as stored:
        arrays = dict(stored)
    name = next(name for name in arrays if name.endswith("cursor"))
    np.savez(snapshot, **(arrays | {name: arrays[name] + 1}))
    with pytest.raises(AssertionError, match="cursor"):
        interrupted_training.require_same_end(reference, ended.runs[0])
