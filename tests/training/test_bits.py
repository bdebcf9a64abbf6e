"""What the program around a run sets for JAX does not change the run."""

from pathlib import Path

import jax
import numpy as np

from policy import bundle
from training import trainer


def test_a_run_in_a_program_with_64_bits_is_the_same_run(finished: Path, tiny, tmp_path) -> None:
    with jax.enable_x64(True):
        trainer.train(tiny(tmp_path / "run"))
    params = [bundle.read(run / "policies" / "240").params for run in (finished, tmp_path / "run")]
    for one, other in zip(*map(jax.tree.leaves, params), strict=True):
        np.testing.assert_array_equal(one, other)
