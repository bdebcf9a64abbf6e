"""Which policies and snapshots a run keeps, and what it does when the disk or a file fails it."""

import errno
import io
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import rich.console

from policy import bundle, verified_folder
from tests.training.fake_clock import FakeClock, set_times
from tests.training.flags import TINY_RUN
from training import trainer
from training.config import ConfigError
from training.progress_display import ConsoleProgress
from training.run import main
from training.run_dir import checkpoint

pytestmark = pytest.mark.usefixtures("without_physics")


def require_same_policies(one: Path, other: Path) -> None:
    """Compare the published policies of two runs bit for bit."""
    assert bundle.versions(one / "policies") == bundle.versions(other / "policies")
    for version in map(str, bundle.versions(one / "policies")):
        ours, theirs = (jax.tree.leaves(bundle.read(run / "policies" / version).params) for run in (one, other))
        for left, right in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(left, right)


def evaluations_that_find(monkeypatch: pytest.MonkeyPatch, stays: list[float]) -> None:
    """Let the evaluations of a run find these figures, one after another."""
    found = iter(stays)
    monkeypatch.setattr(trainer.references, "measure_once", lambda *_, **__: 0.0)
    monkeypatch.setattr(
        trainer.evaluation, "summarize", lambda _: {"eval/stay": next(found), "eval/final_distance": 1.0}
    )


class Told(ConsoleProgress):
    """Collects what a run says, but not its evaluations, of which these tests make up a part."""

    def __init__(self) -> None:
        self.console = rich.console.Console(file=io.StringIO(), width=10_000)
        super().__init__(self.console)

    def evaluated(self, metrics) -> None: ...

    @property
    def text(self) -> str:
        return self.console.file.getvalue()


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (0, [40, 80, 120, 160, 200, 240]),
        (1, [80, 240]),
        (3, [80, 160, 200, 240]),
        (5, [80, 120, 160, 200, 240]),
        (6, [40, 80, 120, 160, 200, 240]),
    ],
)
def test_a_run_keeps_its_newest_policies_and_the_best(tiny, tmp_path, monkeypatch, keep: int, kept: list[int]) -> None:
    evaluations_that_find(monkeypatch, [0.25, 0.75, 0.5, 0.5, 0.5, 0.25])
    trainer.train(tiny(tmp_path / "run", num_evals=6, keep_policies=keep), progress=Told())
    assert bundle.versions(tmp_path / "run" / "policies") == kept
    assert len(list((tmp_path / "run" / "policies").iterdir())) == len(kept)
    for version in kept:
        bundle.read(tmp_path / "run" / "policies" / str(version))


def test_the_best_policy_goes_when_a_better_one_comes(tiny, tmp_path, monkeypatch) -> None:
    evaluations_that_find(monkeypatch, [0.25, 0.5, 0.25, 0.5, 0.25, 0.25])  # of equal ones, the newer counts as better
    trainer.train(tiny(tmp_path / "run", num_evals=6, keep_policies=1), progress=Told())
    assert bundle.versions(tmp_path / "run" / "policies") == [160, 240]


def test_a_negative_number_of_policies_is_refused(tiny, tmp_path) -> None:
    with pytest.raises(ConfigError, match="keep_policies must be 1 or more, or 0 to keep all, got -1; try 10"):
        tiny(tmp_path, keep_policies=-1)
    with pytest.raises(ConfigError, match="snapshot_minutes must be a positive number, got 0"):
        tiny(tmp_path, snapshot_minutes=0)


def test_a_damaged_newest_snapshot_is_passed_over_and_the_run_ends_the_same(finished: Path, tiny, tmp_path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "policies" / "240")  # as if it was killed before the last publication
    content = bytearray((out / "snapshots" / "6" / "state.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "snapshots" / "6" / "state.npz").write_bytes(content)
    told = Told()
    trainer.train(tiny(out, resume=True), progress=told)
    reason = "state.npz has changed since it was written"
    assert f"warning: the snapshot {out}/snapshots/6 is damaged ({reason}); it is now 6.damaged" in told.text
    assert f"resuming from {out}/snapshots/3" in told.text
    require_same_policies(finished, out)
    assert sorted(path.name for path in (out / "snapshots").iterdir()) == ["3", "6", "6.damaged"]
    assert (out / "snapshots" / "6.damaged" / "state.npz").read_bytes() == content


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", ["policies", "snapshots"])
def test_a_disk_that_fails_ends_the_run_with_one_line_and_costs_nothing(
    finished: Path, tiny, tmp_path, monkeypatch, capsys, *, kind: str, code: int
) -> None:
    """The second snapshot or publication fails. The run is resumed and ends as one whose disk never failed."""
    out, create = tmp_path / "run", verified_folder.create

    def fail(target: Path, **options) -> None:
        if target.parent.name == kind and target.name in {"6", "240"}:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
                create(target, **options)
        create(target, **options)

    flags = [*TINY_RUN, f"--out={out}", "--max-eval-share=1"]
    with monkeypatch.context() as patch:
        patch.setattr(verified_folder, "create", fail)
        assert main(flags) == 1
    told = capsys.readouterr().err
    what = {"policies": f"the policy {out}/policies/240", "snapshots": f"the snapshot {out}/snapshots/6"}[kind]
    assert f"error: [Errno {code}] {what} cannot be written: {os.strerror(code)}; check the disk" in told
    assert "Traceback" not in told
    assert bundle.versions(out / "policies") == [120]
    bundle.read(out / "policies" / "120")
    (out / "policies" / ".writing-240-0123abcd").mkdir()
    (out / "snapshots" / ".writing-6-0123abcd").mkdir()
    assert main([*flags, "--resume"]) == 0
    require_same_policies(finished, out)
    assert sorted(path.name for path in (out / "snapshots").iterdir()) == ["3", "6"]
    assert sorted(path.name for path in (out / "policies").iterdir()) == ["120", "240"]


@pytest.mark.parametrize("minutes", [0.05, 0.15, 10.0])
def test_snapshots_come_by_the_clock_and_change_nothing(
    finished: Path, tiny, tmp_path, monkeypatch, minutes: float
) -> None:
    """An unroll takes 1 s and a gradient step 6 s, which is a slice; saving takes no time."""
    clock, saves, save = FakeClock(), list[float](), checkpoint.save
    set_times(monkeypatch, clock, collect=1, update=6)

    def noted(*arguments, **options) -> None:
        saves.append(clock.now)
        save(*arguments, **options)

    monkeypatch.setattr(checkpoint, "save", noted)
    trainer.train(tiny(tmp_path / "run", snapshot_minutes=minutes), clock=clock)
    # two iterations of 1 s without gradient steps, then four of 1 + 18 s, with evaluations after 21 s and 78 s
    assert (
        saves
        == {
            0.05: [3, 9, 15, 21, 28, 34, 40, 47, 53, 59, 66, 72, 78],  # after 3 s or more
            0.15: [9, 21, 34, 47, 59, 72, 78],  # after 9 s or more
            10.0: [21, 78],
        }[minutes]
    )
    require_same_policies(finished, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "snapshots").iterdir()) == [
        "3" if minutes > 1 else "5",
        "6",
    ]


def test_a_run_in_folders_with_odd_names_is_published_and_resumed(finished: Path, tiny, tmp_path) -> None:
    out = tmp_path / "lr[1e-3]" / "star*{a,b}? 100%20%s" / "übung\nnew"
    trainer.train(tiny(out, num_evals=1, total_env_steps=120))
    trainer.train(tiny(out, num_evals=1, resume=True))
    require_same_policies(finished, out)
