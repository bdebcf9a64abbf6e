"""A run's folder: refused while something else is in it or happens to it, and otherwise left as it is."""

import errno
import fcntl
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy import bundle
from tests.failing_disk import FailingDisk
from tests.training.lines import Lines
from training import trainer
from training.config import ConfigError
from training.run import main
from training.run_dir import checkpoint, config_file, elapsed, lock, publish
from training.run_dir.metrics_log import MetricsError, read_metrics
from training.run_dir.provenance import Origin

pytestmark = pytest.mark.usefixtures("without_physics")
TINY_FLAGS = frozenset(
    {
        "num_envs",
        "unroll_length",
        "episode_length",
        "total_env_steps",
        "num_evals",
        "updates_per_unroll",
        "batch_size",
        "rows_per_episode",
        "max_replay_size",
        "min_replay_size",
        "actor_width",
        "critic_width",
        "representation_dim",
        "eval_episodes",
        "resample_goal_probability",
        "discount",
        "preset",
        "actor_learning_rate",
        "critic_learning_rate",
        "temperature_learning_rate",
    }
)


def test_a_folder_in_use_is_refused_without_resume_or_overwrite(finished: Path, tiny, tmp_path) -> None:
    kept = (finished / "metrics.jsonl").read_text()
    with pytest.raises(lock.RunDirError, match="--resume continues .*--overwrite deletes"):
        trainer.train(tiny(finished))
    with pytest.raises(ConfigError, match="batch_size was 16 in the run to resume and is 32 now"):
        trainer.train(tiny(finished, resume=True, batch_size=32))
    with pytest.raises(lock.RunDirError, match="no run to resume"):
        trainer.train(tiny(tmp_path / "nothing", resume=True))
    assert (finished / "metrics.jsonl").read_text() == kept
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("precious")
    with pytest.raises(lock.RunDirError, match="and is not deleted"):
        trainer.train(tiny(tmp_path / "thesis", overwrite=True))
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "precious"


def test_folders_that_only_look_like_runs_are_not_deleted(finished: Path, tiny, tmp_path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(lock.RunDirError, match="contains something other than a run and is not deleted"):
        trainer.train(tiny(model, overwrite=True))
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "thesis.txt").write_text("precious")
    with pytest.raises(lock.RunDirError, match="contains thesis.txt next to a run"):
        trainer.train(tiny(run, overwrite=True))
    assert (run / "thesis.txt").read_text() == "precious"
    assert bundle.versions(run / "policies") == [120, 240]


def test_a_link_is_overwritten_where_it_points_to(finished: Path, tiny, tmp_path) -> None:
    shutil.copytree(finished, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    trainer.train(tiny(tmp_path / "link", overwrite=True, total_env_steps=120, num_evals=1))
    assert (tmp_path / "link").is_symlink()
    assert bundle.versions(tmp_path / "real" / "policies") == [120]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_where_a_folder_cannot_be_locked_a_file_in_it_is(tiny, tmp_path, monkeypatch) -> None:
    """As on NFS, which says EBADF."""
    flock, out = fcntl.flock, tmp_path / "run"

    def files_only(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", files_only)
    for _ in range(2):  # what the first one leaves is no obstacle
        with lock.claimed(tiny(out, resume="auto")):
            assert [path.name for path in out.iterdir()] == [".lock"]
            with (
                pytest.raises(lock.RunDirError, match="another process is training in"),
                lock.claimed(tiny(out, resume="auto")),
            ):
                pass


def test_a_file_system_without_locks_is_an_error(tiny, tmp_path, monkeypatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", none)
    message = f"{tmp_path}/run cannot be locked: Function not implemented"
    with pytest.raises(OSError, match=message), lock.claimed(tiny(tmp_path / "run")):
        pass


def test_auto_claims_an_empty_folder_a_new_one_or_one_with_a_run(finished: Path, tiny, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new", tmp_path / "empty", finished):
        with lock.claimed(tiny(folder, resume="auto")):
            pass
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(lock.RunDirError, match="empty has no run to resume and is not empty; use another --out$"):
        trainer.train(tiny(tmp_path / "empty", resume="auto"))
    with pytest.raises(ConfigError, match="batch_size was 16 in the run to resume and is 32 now"):
        trainer.train(tiny(finished, resume="auto", batch_size=32))


def test_the_time_of_a_run_is_zero_before_it_is_written_and_refused_if_it_cannot_be_read(tiny, tmp_path) -> None:
    config = tiny(tmp_path, max_minutes=2)
    assert elapsed.read(tmp_path) == (0, 0)
    elapsed.write(config, 90.0)
    assert elapsed.read(tmp_path) == (90, 0)
    elapsed.write(config, 119.0, time_is_up=True)
    assert elapsed.read(tmp_path) == (119, 2)
    elapsed.write(config, 240.0, time_is_up=True)
    assert elapsed.read(tmp_path) == (240, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["time.json"]
    for text in ("", "[]", '{"total_s": 1}', '{"total_s": null, "ended_at_minutes": 1}'):
        (tmp_path / "time.json").write_text(text)
        with pytest.raises(MetricsError, match="time.json cannot be read: .*; repair or remove the file"):
            elapsed.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("config.json", lambda config: config_file.write(config.out, config)),
        ("time.json", lambda config: elapsed.write(config, 1.0)),
        ("diffs/0.diff", lambda config: Origin({"diff": "diffs/0.diff"}, b"new", []).store_diff(config.out)),
    ],
)
def test_a_small_file_of_a_run_is_on_disk_before_it_has_its_name(tiny, tmp_path, name: str, write: Any) -> None:
    (tmp_path / "diffs").mkdir()
    (tmp_path / name).write_text("earlier")
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch)
        write(tiny(tmp_path))
    assert [each for each in disk.operations if each != "mkdir"] == ["open", "write", "fsync", "rename", "fsync"]
    assert (tmp_path / name).read_text() != "earlier"


@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}])
def test_a_folder_that_another_process_trains_in_is_refused(finished: Path, tiny, how: dict[str, bool]) -> None:
    config = tiny(finished, **how)
    with (
        lock.claimed(tiny(finished, resume=True)),
        pytest.raises(lock.RunDirError, match="another process is training in"),
    ):
        trainer.train(config)
    assert bundle.versions(finished / "policies") == [120, 240]


def test_a_folder_in_use_may_be_tried_again_and_one_with_a_run_may_not(finished: Path, tiny, capsys) -> None:
    """Exit code 2 says that the same command fails again: a Job of Kubernetes then does not repeat it."""
    with lock.claimed(tiny(finished, resume=True)):
        assert main(["--out", str(finished), "--resume"]) == 1
    assert main(["--out", str(finished), "--env", "point_u_maze"]) == 2
    in_use, not_empty = capsys.readouterr().err.splitlines()
    assert in_use.startswith(f"error: another process is training in {finished}; wait")
    assert not_empty.startswith(f"error: {finished} is not empty; --resume continues")


def test_a_run_without_the_snapshots_of_its_policies_is_not_restarted(finished: Path, tiny, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "snapshots")
    with pytest.raises(checkpoint.SnapshotError, match="no intact snapshot in"):
        trainer.train(tiny(run, resume=True))
    assert len(read_metrics(run)) == 2


def test_a_run_that_goes_back_behind_its_policies_names_those_that_stay(finished: Path, tiny, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "snapshots" / "6")
    progress, before = Lines(), (run / "policies" / "240" / "manifest.json").read_bytes()
    trainer.train(tiny(run, resume=True, actor_learning_rate=1e-5), progress=progress)
    (line,) = [line for line in progress.lines if "newer" in line]
    assert line.startswith(f"{run}/policies has versions that are newer than the snapshot of step 120: 240. They stay")
    assert (run / "policies" / "240" / "manifest.json").read_bytes() == before
    assert publish.describe_later(tiny(run), 240) == ""


def test_without_the_replay_a_policy_newer_than_the_snapshot_is_not_taken_for_the_runs_own(tiny, tmp_path) -> None:
    small = {"snapshot_replay": False}
    trainer.train(tiny(tmp_path / "run", **small))
    shutil.rmtree(tmp_path / "run" / "snapshots" / "6")
    with pytest.raises(checkpoint.SnapshotError, match="has published step 240, but its last snapshot is of step 120"):
        trainer.train(tiny(tmp_path / "run", **small, resume=True))


@pytest.mark.parametrize("line", ["{}", "[1, 2]", '{"env_steps": null}', "\udcff", "["])
def test_a_record_that_is_damaged_is_named(finished: Path, tiny, tmp_path, line: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "metrics.jsonl").write_bytes(line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(MetricsError, match="metrics.jsonl"):
        trainer.train(tiny(run, resume=True))


def test_a_run_that_is_damaged_is_refused_by_name_and_left_alone(finished: Path, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    settings = json.loads((run / "config.json").read_text()) | {"out": str(run), "total_env_steps": 400}
    flags = [
        word
        for name, value in settings.items()
        if name in TINY_FLAGS
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    resume = ["--env", "point_u_maze", "--out", str(run), "--resume", *flags]

    def refused(message: str, *, code: int) -> None:
        assert main(resume) == code
        told = capsys.readouterr().err
        assert message in told
        assert "Traceback" not in told

    for path in run.glob("snapshots/*/state.npz"):
        path.write_bytes(path.read_bytes()[:20])
    refused(
        f"there is no intact snapshot in {run}/snapshots to resume from: 6 is damaged (state.npz has 20 bytes", code=1
    )
    (run / "config.json").write_text("garbage")
    refused("config.json cannot be read", code=2)
    assert bundle.versions(run / "policies") == [120, 240]


@pytest.mark.parametrize("how", [{"resume": "auto"}, {}, {"overwrite": True}], ids=str)
def test_a_run_begins_in_a_folder_that_has_only_the_changes_of_a_checkout(tiny, tmp_path, how: dict[str, bool]) -> None:
    """Earlier builds left it if they were killed, or the disk was full, between the changes and config.json."""
    (tmp_path / "run" / "diffs").mkdir(parents=True)
    (tmp_path / "run" / ".config.json").write_text("{")
    with lock.claimed(tiny(tmp_path / "run", **how)) as take_over:
        take_over(Origin({"diff": "diffs/0.diff"}, diff=b"changed", lines=[]))
    assert (tmp_path / "run" / "diffs" / "0.diff").read_bytes() == b"changed"
    with lock.claimed(tiny(tmp_path / "run", resume="auto")):
        pass


@pytest.mark.parametrize("number", range(10))
def test_wherever_the_start_of_a_run_fails_the_same_command_starts_it_again(tiny, tmp_path, number: int) -> None:
    config, origin = tiny(tmp_path / "run", resume="auto"), Origin({"diff": "diffs/0.diff"}, diff=b"changed", lines=[])
    with lock.claimed(config) as take_over, pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch, fail_at=number)
        with pytest.raises(OSError, match="No space left on device"):
            take_over(origin)
    assert disk.operations[-1] in {"open", "write", "fsync", "rename", "mkdir"}
    with lock.claimed(config) as take_over:
        take_over(origin)
    assert sorted(path.name for path in config.out.iterdir()) == ["config.json", "diffs"]
    assert [path.name for path in (config.out / "diffs").iterdir()] == ["0.diff"]


def test_what_is_left_of_a_run_that_was_being_deleted_is_removed_at_the_next_claim(tiny, tmp_path) -> None:
    for name in (".r*n.deleting-0123abcd", ".r*n.deleting-notes", ".run.deleting-0123abcd", ".r*n.deleting-0123abcd2"):
        (tmp_path / name / "snapshots").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "r*n")
    (tmp_path / "r*n").mkdir()
    with lock.claimed(tiny(tmp_path / "link")):
        kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"link", "r*n", ".r*n.deleting-notes", ".run.deleting-0123abcd", ".r*n.deleting-0123abcd2"}


def test_a_folder_with_the_longest_possible_name_is_overwritten(tiny, tmp_path) -> None:
    out = tmp_path / ("ü" * 127 + "x")
    out.mkdir()
    (out / "policies").mkdir()
    config = tiny(out, overwrite=True)
    config_file.write(out, config)
    with lock.claimed(config) as take_over:
        take_over(Origin({}, diff=b"", lines=[]))
        assert [path.name for path in out.iterdir()] == ["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_path_too_long_for_the_files_of_a_run_is_refused_at_the_start(tiny, tmp_path) -> None:
    """The system would refuse the first policy, perhaps after hours."""
    out = tmp_path
    while len(str(out)) <= 3_800:
        out /= "x" * 190
    with pytest.raises(lock.RunDirError, match=r"the path of --out has 3\d\d\d bytes, at most 3800 are possible"):
        trainer.train(tiny(out))
    assert not any(tmp_path.iterdir())


def test_a_bad_name_costs_nothing(finished: Path, capsys) -> None:
    arguments = ["--env", "point_u_maze", "--out", str(finished), "--overwrite", "--name", "a/b c"]
    assert main(arguments) == 2
    assert "name must be 1 to 64 letters" in capsys.readouterr().err
    assert bundle.versions(finished / "policies") == [120, 240]


def test_overwrite_starts_a_new_run(tiny, tmp_path) -> None:
    out = tmp_path / "run"
    trainer.train(tiny(out, total_env_steps=120, num_evals=1))
    (out / "policies" / "leftover").mkdir()
    trainer.train(tiny(out, overwrite=True, total_env_steps=120, num_evals=1))
    assert not (out / "policies" / "leftover").exists()
    assert len(read_metrics(out)) == 1


def test_a_disk_without_room_for_a_snapshot_is_refused_with_both_sizes(finished, tmp_path, monkeypatch) -> None:
    usage = type(shutil.disk_usage(tmp_path))(10, 9, 1_000_000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="needs 2 MB, but the disk of .* has only 1 MB left; .*--no-snapshot-replay"):
        checkpoint.save(tmp_path / "snapshots", 1, state={"array": np.zeros(500_000, np.float32)})
    assert not any((tmp_path / "snapshots").iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--env", "point_u_maze", "--out", str(tmp_path / "file" / "run")]) == 1
    told = capsys.readouterr().err
    assert "Not a directory" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("draft", [".config.json", ".time.json", ".metrics.jsonl", ".curves.png", ".references.json"])
def test_a_run_that_was_killed_while_it_wrote_a_file_can_be_overwritten(tiny, tmp_path, draft: str) -> None:
    config = tiny(tmp_path / "run", overwrite=True)
    config.out.mkdir()
    config_file.write(config.out, config)
    (config.out / draft).write_text("{")
    with lock.claimed(config) as take_over:
        take_over(Origin({}, diff=b"", lines=[]))
    assert [path.name for path in config.out.iterdir()] == ["config.json"]
