"""One folder served twice: under the name of its policy, and under another name, with other settings."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from kilolayer.v1 import policy_pb2 as pb
from kilolayer.v1.policy_pb2_grpc import PolicyStub
from policy import bundle
from policy.acting import act
from serving.api.open_inference import open_inference_pb2 as open_inference
from serving.config import ServeConfig
from serving.policy_settings import NamedPath, PolicySettings
from tests.open_inference import method
from tests.serving.in_process import Running, served

STATE, GOAL = [0.5, -0.5, 0.25, 0.0], [1.0, 2.0]


@pytest.fixture(scope="module")
def folder(publish: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the versions 1000, which is the best, and 2000."""
    root = tmp_path_factory.mktemp("named")
    for version, stay in ((1000, 0.75), (2000, 0.5)):
        publish(root, version, stay=stay)
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    config = ServeConfig(
        policies=(folder, NamedPath("maze", folder)),
        versions=("maze=best",),
        listen="127.0.0.1:0",
        metrics=False,
        admin="off",
        max_batch_rows=1,
        max_batch_delay_s=0.004,
        policy_settings=(PolicySettings(name="maze", max_batch_rows=2, max_batch_delay_s=0.5),),
    )
    with served(config) as running:
        yield running


def test_answers_have_the_name_and_the_version_that_were_chosen(server: Running, folder: Path) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = PolicyStub(channel)
        listed = stub.List(pb.ListRequest(), timeout=60)
        replies = [stub.Act(pb.ActRequest(policy=name, state=STATE, goal=GOAL), timeout=60) for name in ("", "maze")]
        described = stub.Describe(pb.DescribeRequest(policy="maze"), timeout=60)
    assert sorted(entry.policy for entry in listed.policies) == ["maze", "point_u_maze"]
    assert [(reply.policy, reply.version) for reply in replies] == [("point_u_maze", "2000"), ("maze", "1000")]
    assert described.spec.name == "maze"
    for reply in replies:
        published = bundle.read(folder / reply.version)
        expected = act(published.params, np.array([STATE]), np.array([GOAL]))
        np.testing.assert_allclose([reply.action], expected, atol=1e-5)
    assert server.sample("rows_total", policy="maze") == 1


def test_each_policy_has_its_own_delay(server: Running) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call = method(channel, "ModelConfig")
        configs = [
            call(open_inference.ModelConfigRequest(name=name), timeout=60).config for name in ("point_u_maze", "maze")
        ]
    delays = [config.dynamic_batching.max_queue_delay_microseconds for config in configs]
    assert delays == [4_000, 500_000]
