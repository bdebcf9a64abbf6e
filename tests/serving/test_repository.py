"""The Open Inference Protocol's repository calls on the admin address, with Triton's own client."""

from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc.aio as triton
from prometheus_client import CollectorRegistry
from tritonclient.utils import InferenceServerException

from serving.api.admin_server import AdminServer
from serving.api.open_inference import open_inference_pb2 as pb
from serving.sockets import UnixAddress
from tests.serving.decisions import DAMAGE, Decisions

LOAD, UNLOAD = "RepositoryModelLoad", "RepositoryModelUnload"
Parameters = dict[str, pb.ModelRepositoryParameter]


@pytest.fixture
async def decisions(tmp_path: Path) -> Decisions:
    decisions = Decisions(tmp_path, "bee", "ant")
    await decisions.publish_more_of_ant()
    return decisions


@pytest.fixture
async def client(tmp_path: Path, decisions: Decisions) -> AsyncGenerator[triton.InferenceServerClient]:
    address = UnixAddress(tmp_path / "admin.sock")
    server = AdminServer(decisions.deployment, address, drain=lambda: None, collectors=CollectorRegistry())
    await server.start()
    async with triton.InferenceServerClient(str(address)) as client:
        yield client
    await server.stop()


async def call(client: triton.InferenceServerClient, method: str, model: str, parameters: Parameters) -> None:
    """Call a method with parameters that Triton's client does not send."""
    request = getattr(pb, f"{method}Request")(model_name=model, parameters=parameters)
    channel = client._channel  # pyright: ignore[reportPrivateUsage]
    await channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(request.SerializeToString(), timeout=60)


@contextmanager
def refused(status: str, message: str) -> Generator[None]:
    with pytest.raises(InferenceServerException) as error:
        yield
    assert (error.value.status(), error.value.message()) == (f"StatusCode.{status}", message)


async def test_the_index_has_loaded_and_refused_versions(client: triton.InferenceServerClient) -> None:
    index: Any = await client.get_model_repository_index(as_json=True)
    assert index["models"] == [
        {"name": "ant", "version": "1000", "state": "READY"},
        {"name": "ant", "version": "2000", "state": "READY"},
        {"name": "ant", "version": "3000", "state": "UNAVAILABLE", "reason": f"hash: {DAMAGE}"},
        {"name": "bee", "version": "7", "state": "READY"},
    ]


async def test_the_index_can_leave_out_what_is_not_ready(client: triton.InferenceServerClient) -> None:
    request = pb.RepositoryIndexRequest(ready=True).SerializeToString()
    channel = client._channel  # pyright: ignore[reportPrivateUsage]
    reply = await channel.unary_unary("/inference.GRPCInferenceService/RepositoryIndex")(request, timeout=60)
    versions = [model.version for model in pb.RepositoryIndexResponse.FromString(reply).models]
    assert versions == ["1000", "2000", "7"]


async def test_load_without_a_version_takes_up_the_latest_one(
    client: triton.InferenceServerClient, decisions: Decisions
) -> None:
    await client.load_model("ant")
    assert decisions.live("ant") == 2500
    problem = f"version 3000 of ant is refused (hash): {DAMAGE}; version 2500 stays live"
    with refused("FAILED_PRECONDITION", problem):  # now there is no other one
        await client.load_model("ant")
    await decisions.deployment.follow("ant", on=False)
    await client.load_model("ant")
    assert decisions.live("ant") == 2500


@pytest.mark.parametrize(
    "parameter", [pb.ModelRepositoryParameter(string_param="2500"), pb.ModelRepositoryParameter(int64_param=2500)]
)
async def test_a_version_that_is_named_is_loaded_and_unloaded(
    client: triton.InferenceServerClient, decisions: Decisions, parameter: pb.ModelRepositoryParameter
) -> None:
    await call(client, LOAD, "ant", {"version": parameter})
    assert decisions.loaded("ant") == (1000, 2000, 2500)
    assert decisions.live("ant") == 2000
    await call(client, UNLOAD, "ant", {"version": parameter})
    assert decisions.loaded("ant") == (1000, 2000)


async def test_the_live_version_is_not_unloaded(client: triton.InferenceServerClient, decisions: Decisions) -> None:
    expected = "version 2000 is live and cannot be unloaded; name another one with the parameter version"
    with refused("FAILED_PRECONDITION", expected):
        await client.unload_model("ant")  # it sends unload_dependents, which is ignored
    assert decisions.loaded("ant") == (1000, 2000)


async def test_what_does_not_apply_is_refused(client: triton.InferenceServerClient, decisions: Decisions) -> None:
    with refused("NOT_FOUND", "there is no policy 'cat'; there are: ant, bee"):
        await client.load_model("cat")
    not_supported = (
        "the parameter 'config' is not supported; version is, and policies have no configuration or files of their own"
    )
    with refused("INVALID_ARGUMENT", not_supported):
        await client.load_model("ant", config="{}")
    with pytest.raises(Exception, match="the parameter version must be a string or an integer"):
        await call(client, LOAD, "ant", {"version": pb.ModelRepositoryParameter(bool_param=True)})
    assert decisions.live("ant") == 2000


async def test_there_are_no_repositories(client: triton.InferenceServerClient) -> None:
    request = pb.RepositoryIndexRequest(repository_name="disk").SerializeToString()
    channel = client._channel  # pyright: ignore[reportPrivateUsage]
    index = channel.unary_unary("/inference.GRPCInferenceService/RepositoryIndex")
    with pytest.raises(Exception, match="repository_name must be empty, got 'disk'; policies are in no repository"):
        await index(request, timeout=60)


async def test_robots_are_not_served_here(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as error:
        await client.is_server_live()
    assert error.value.status() == "StatusCode.UNIMPLEMENTED"
