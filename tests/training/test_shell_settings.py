"""What a shell sets for JAX does not end a run, and does not change it."""

from pathlib import Path

import jax
import numpy as np
import pytest

from policy import bundle, jax_runtime
from training import trainer
from training.run import main


def test_a_run_in_a_program_with_64_bits_is_the_same_run(finished: Path, tiny, tmp_path) -> None:
    with jax.enable_x64(True):
        trainer.train(tiny(tmp_path / "run"))
    params = [bundle.read(run / "policies" / "240").params for run in (finished, tmp_path / "run")]
    for one, other in zip(*map(jax.tree.leaves, params), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--list-envs"]], ids=["a run", "a dry run", "a list"])
def test_a_platform_that_is_not_there_is_one_line(
    tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    def no_device() -> None:
        raise AssertionError

    monkeypatch.setattr(jax, "local_devices", no_device)
    monkeypatch.setattr(jax_runtime, "_is_installed", lambda _: False)
    assert main(["--env", "point_u_maze", "--out", str(tmp_path / "run"), *more]) in {1, 2}
    told = capsys.readouterr().err
    assert "its CUDA libraries are not installed; install requirements/cuda13.txt" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()
