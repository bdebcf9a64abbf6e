"""The sample of the answered rows: which rows belong to it, when they are written, and what happens if they cannot be.

The sampling is compared with numbers drawn from a generator of the same seed, and files with the replies of a server.
"""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

import kilolayer
from serving.config import ServeConfig
from serving.telemetry.metrics import Metrics
from serving.telemetry.row_files import AnsweredRows, RowFolder
from serving.telemetry.row_log import RowLog, RowWriter
from tests.open_inference import actions, infer_request, method
from tests.processor_time import in_comparisons
from tests.samples import policy_spec
from tests.serving.in_process import served
from tests.serving.test_row_files import MIB, answered, files

SPEC = policy_spec()
ROW = np.arange(6, dtype=np.float32)[None]  # a state and a goal


class Counted:
    """Metrics that start at 0."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)

    def written(self, policy: str) -> float:
        return self.registry.get_sample_value("kilolayer_log_rows_total", {"policy": policy}) or 0

    def dropped(self, reason: str) -> float:
        return self.registry.get_sample_value("kilolayer_dropped_log_rows_total", {"reason": reason}) or 0


class BlockedFolder(RowFolder):
    """Blocks in every write until `released`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, max_bytes=MIB)
        self.started, self.released = threading.Event(), threading.Event()

    def write(self, rows: Sequence[AnsweredRows]) -> None:
        self.started.set()
        assert self.released.wait(60)
        super().write(rows)


def read(folder: Path) -> dict[str, np.ndarray]:
    """The rows of all files together, in order."""
    loaded = [np.load(path, allow_pickle=False) for path in files(folder)]
    names = ("state", "goal", "action", "robot_id", "time_s")
    return {name: np.concatenate([each[name] for each in loaded]) for name in names}


def test_every_row_is_decided_for_itself_by_the_seed(tmp_path: Path) -> None:
    counted = Counted()
    log = RowLog(
        RowFolder(tmp_path, max_bytes=MIB), share=0.1, metrics=counted.metrics, random=np.random.default_rng(5)
    )
    expected: list[float] = []
    drawn = iter((np.random.default_rng(5).random(3000) < 0.1).tolist())
    for number in range(1000):
        inputs = np.full((1 if number % 2 else 5, 6), number, np.float32)
        inputs[:, 1] = np.arange(len(inputs))
        sample = log.sample(SPEC, "1", inputs=inputs, robot_id="")
        expected += [number + row / 10 for row in range(len(inputs)) if next(drawn)]
        if sample:
            sample.answered(inputs[:, :2])
    log.close()
    found = read(tmp_path)
    logged = found["state"][:, 0] + found["state"][:, 1] / 10
    np.testing.assert_allclose(logged, expected, rtol=1e-6)
    np.testing.assert_array_equal(found["action"], found["state"][:, None, :2])  # each with its own action
    assert len(expected) == counted.written("point_u_maze") == (np.random.default_rng(5).random(3000) < 0.1).sum()


def test_a_share_of_1_is_every_row(tmp_path: Path) -> None:
    log = RowLog(RowFolder(tmp_path, max_bytes=MIB), share=1.0, metrics=Counted().metrics)
    for count in (1, 7):
        sample = log.sample(SPEC, "1", inputs=np.repeat(ROW, count, axis=0), robot_id="")
        assert sample
        assert sample.chosen.tolist() == list(range(count))
    log.close()


def test_a_row_of_a_request_that_is_not_answered_is_not_written(tmp_path: Path) -> None:
    log = RowLog(RowFolder(tmp_path, max_bytes=MIB), share=1.0, metrics=Counted().metrics)
    assert log.sample(SPEC, "1", inputs=ROW, robot_id="")
    log.close()
    assert files(tmp_path) == []


def test_an_action_chunk_keeps_its_shape(tmp_path: Path) -> None:
    log = RowLog(RowFolder(tmp_path, max_bytes=MIB), share=1.0, metrics=Counted().metrics, wall_clock=lambda: 99.5)
    sample = log.sample(policy_spec(action_chunk=3), "1", inputs=ROW, robot_id="arm")
    assert sample
    sample.answered(np.array([[1, 2, 3, 4, 5, 6]], np.float32))
    log.close()
    found = {name: each.tolist() for name, each in read(tmp_path).items()}
    assert found == {
        "state": [[0, 1, 2, 3]],
        "goal": [[4, 5]],
        "action": [[[1, 2], [3, 4], [5, 6]]],
        "robot_id": ["arm"],
        "time_s": [99.5],
    }


def test_rows_beyond_the_queue_are_dropped_and_nothing_waits(tmp_path: Path) -> None:
    counted, folder = Counted(), BlockedFolder(tmp_path)
    log = RowLog(folder, share=1.0, metrics=counted.metrics)
    block = np.zeros((4096, 6), np.float32)  # with actions of 2 values 131,072 bytes, which fills a file of 1/8 MiB

    def answer() -> None:
        sample = log.sample(SPEC, "1", inputs=block, robot_id="")
        assert sample
        sample.answered(block[:, :2])

    answer()
    assert folder.started.wait(60)
    for _ in range(200):  # in all 26 MB; the queue holds 16 MiB: 127 requests of 131,072 + 500 bytes
        answer()
    assert counted.dropped("queue_full") == (200 - 127) * 4096
    folder.released.set()
    log.close()
    assert counted.written("point_u_maze") == 128 * 4096
    sample = log.sample(SPEC, "1", inputs=ROW, robot_id="")
    assert sample


def test_rows_wait_for_a_full_file_or_a_minute(tmp_path: Path) -> None:
    counted = Counted()
    writer = RowWriter(RowFolder(tmp_path, max_bytes=MIB), counted.metrics)
    writer.add(answered(2000), now_s=100)  # 2,000 * (36 + 4 + 8) = 96,000 bytes; a file has 131,072
    writer.add(answered(10, version="8"), now_s=130)
    assert files(tmp_path) == []
    writer.add(answered(2000), now_s=150)
    assert [len(np.load(path)["state"]) for path in files(tmp_path)] == [2000]
    writer.write_older_than(129, now_s=189)
    assert len(files(tmp_path)) == 1
    writer.write_older_than(130, now_s=190)
    assert [(str(np.load(path)["version"]), len(np.load(path)["state"])) for path in files(tmp_path)] == [
        ("7", 2000),
        ("8", 10),
    ]
    writer.write_all(now_s=191)
    assert counted.written("maze") == 4010


def test_a_large_request_fills_several_files(tmp_path: Path) -> None:
    writer = RowWriter(RowFolder(tmp_path, max_bytes=MIB), Counted().metrics)
    rows = answered(7000, state=np.arange(14000, dtype=np.float32).reshape(-1, 2))
    writer.add(rows, now_s=0)
    writer.write_all(now_s=0)
    assert [len(np.load(path)["state"]) for path in files(tmp_path)] == [2730, 2730, 1540]  # 131,072 // 48 bytes
    np.testing.assert_array_equal(read(tmp_path)["state"], rows.state)
    assert max(path.stat().st_size for path in files(tmp_path)) <= MIB // 8 + 4096


def test_long_names_of_robots_count_for_every_row_of_a_file(tmp_path: Path) -> None:
    writer = RowWriter(RowFolder(tmp_path, max_bytes=MIB), Counted().metrics)
    for robot_id in ("", "r" * 128):
        writer.add(answered(1000, robot_id=robot_id), now_s=0)
    writer.write_all(now_s=0)
    assert max(path.stat().st_size for path in files(tmp_path)) <= MIB // 8 + 4096


def test_a_folder_that_fails_costs_one_line_a_minute_and_the_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counted = Counted()
    path = tmp_path / "rows"
    writer = RowWriter(RowFolder(path, max_bytes=MIB), counted.metrics)
    path.rmdir()
    path.touch()  # a file in its place, since root may write everywhere
    with caplog.at_level(logging.WARNING):
        for now_s in (0, 1, 59.9, 60, 61):
            writer.add(answered(3), now_s=now_s)
            writer.write_all(now_s=now_s)
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith(f"cannot write sampled rows to {path} ([Errno 20] Not a directory")
    assert "kilolayer_dropped_log_rows_total counts them" in caplog.messages[0]
    assert counted.dropped("write_failed") == 15
    path.unlink()
    path.mkdir()
    writer.add(answered(3), now_s=62)
    writer.write_all(now_s=62)
    assert counted.written("maze") == 3


def test_a_log_whose_folder_fails_still_closes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counted, path = Counted(), tmp_path / "rows"
    log = RowLog(RowFolder(path, max_bytes=MIB), share=1.0, metrics=counted.metrics)
    path.rmdir()
    path.touch()
    sample = log.sample(SPEC, "1", inputs=ROW, robot_id="")
    assert sample
    sample.answered(ROW[:, :2])
    log.close()
    assert counted.dropped("write_failed") == 1
    assert len(caplog.messages) == 1


def test_the_rows_of_a_server_are_those_of_its_replies(policies: Path, tmp_path: Path) -> None:
    """Of every method that gives actions; neither scores nor refused requests leave a row."""
    settings: dict[str, Any] = {"listen": "127.0.0.1:0", "metrics": False, "max_batch_rows": 1, "max_call_rows": 8}
    random = np.random.default_rng(0)
    state, goal = random.normal(size=(2, 4)).astype(np.float32), random.normal(size=(2, 2)).astype(np.float32)
    with (
        served(ServeConfig(policies=(policies,), log_rows=(1.0, tmp_path), **settings)) as running,
        kilolayer.PolicyClient(running.address, timeout_s=60, robot_id="arm") as client,
        client.stream() as stream,
        grpc.insecure_channel(running.address) as channel,
    ):
        expected = [
            client.act(state[0], goal[0]).chunk[None],
            client.act(state, goal, seed=1).chunk,
            client.act(state, goal, seed=1, best_of=3).chunk,
            stream.act(state[1], goal[1]).chunk[None],
        ]
        client.score(state[0], [0, 0], goal=goal[0])
        with pytest.raises(kilolayer.InvalidRequest):
            client.act([3e38] * 4, goal[0])
        reply = method(channel, "ModelInfer")(infer_request(state, goal), timeout=60)
        expected.append(actions(reply)[:, None])
    found = read(tmp_path)
    np.testing.assert_array_equal(found["action"], np.concatenate(expected))
    np.testing.assert_array_equal(found["state"], state[[0, 0, 1, 0, 1, 1, 0, 1]])
    np.testing.assert_array_equal(found["goal"], goal[[0, 0, 1, 0, 1, 1, 0, 1]])
    assert found["robot_id"].tolist() == ["arm"] * 6 + [""] * 2
    assert (np.diff(found["time_s"]) >= 0).all()
    (path,) = tmp_path.iterdir()
    assert (str(np.load(path)["policy"]), str(np.load(path)["version"])) == ("point_u_maze", "1000")
    assert running.sample("log_rows_total", policy="point_u_maze") == 8


def test_a_row_that_is_not_sampled_costs_little(tmp_path: Path) -> None:
    """The limit is about twenty times what it needs."""
    log = RowLog(RowFolder(tmp_path, max_bytes=MIB), share=1e-12, metrics=Counted().metrics)
    assert log.sample(SPEC, "1", inputs=ROW, robot_id="") is None
    assert in_comparisons(lambda: log.sample(SPEC, "1", inputs=ROW, robot_id="")) < 8
    log.close()
