"""Metadata of this protocol: what the server is, and names, shapes and scheduling of each policy."""

from collections.abc import Sequence
from importlib import metadata

from serving.api.open_inference import open_inference_pb2 as pb
from serving.api.open_inference.tensors import DATATYPE, INPUTS, OUTPUT
from serving.batching.queue import PRIORITIES
from serving.config import ServeConfig
from serving.policies.registry import ServedPolicy

_DISTRIBUTION = "kilolayer-stack"
_EXTENSIONS = ("model_configuration", "schedule_policy", "statistics")  # of Triton, by Triton's names
_PLATFORM = "jax_kilolayer"  # the framework and the format of the model
_BACKEND = "jax"
_ANY = -1  # any number of rows
_TYPE = f"TYPE_{DATATYPE}"


def server_metadata() -> pb.ServerMetadataResponse:
    """Return the name, the version and the extensions of the server."""
    return pb.ServerMetadataResponse(name="kilolayer", version=_version(), extensions=_EXTENSIONS)


def model_metadata(served: ServedPolicy, versions: Sequence[str]) -> pb.ModelMetadataResponse:
    """Return the tensors of a policy, and its `versions` that answer requests."""

    def tensor(name: str) -> pb.ModelMetadataResponse.TensorMetadata:
        shape = [_ANY, _dim(served, name)]
        return pb.ModelMetadataResponse.TensorMetadata(name=name, datatype=DATATYPE, shape=shape)

    return pb.ModelMetadataResponse(
        name=served.name,
        versions=versions,
        platform=_PLATFORM,
        inputs=map(tensor, INPUTS),
        outputs=[tensor(OUTPUT)],
    )


def model_config(served: ServedPolicy, config: ServeConfig) -> pb.ModelConfig:
    """Return the Triton configuration of a policy; dimensions are those of one row."""
    return pb.ModelConfig(
        name=served.name,
        platform=_PLATFORM,
        backend=_BACKEND,
        version_policy=pb.ModelVersionPolicy(latest=pb.ModelVersionPolicy.Latest(num_versions=1)),
        max_batch_size=config.max_call_rows,
        input=[pb.ModelInput(name=name, data_type=_TYPE, dims=[_dim(served, name)]) for name in INPUTS],
        output=[pb.ModelOutput(name=OUTPUT, data_type=_TYPE, dims=[_dim(served, OUTPUT)])],
        dynamic_batching=pb.ModelDynamicBatching(
            max_queue_delay_microseconds=round(served.batcher.policy.max_batch_delay_s * 1e6),
            priority_levels=PRIORITIES,
            default_priority_level=PRIORITIES,
            default_queue_policy=pb.ModelQueuePolicy(timeout_action="REJECT", allow_timeout_override=True),
        ),
    )


def _dim(served: ServedPolicy, name: str) -> int:
    """Values in a row of the tensor `name`."""
    spec = served.bundle.spec
    return {"state": spec.state_dim, "goal": spec.goal_dim, "action": spec.chunk_dim}[name]


def _version() -> str:
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:  # not installed, as in the serving image
        return "unknown"
