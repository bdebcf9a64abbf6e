"""The messages of the Open Inference Protocol: nobody else's, and in what is installed."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool

from serving.api.open_inference import open_inference_pb2 as pb

REPOSITORY = Path(__file__).parents[2]
FOLDER = "serving/api/open_inference"


def test_the_default_pool_knows_nothing_of_them() -> None:
    assert pb.ModelInferRequest.DESCRIPTOR.full_name == "inference.ModelInferRequest"
    assert pb.ModelInferRequest.DESCRIPTOR.file.pool is not descriptor_pool.Default()
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName(pb.DESCRIPTOR.name)


def test_they_live_beside_those_of_a_triton_client_in_either_order() -> None:
    ours, theirs = "serving.api.open_inference.open_inference_pb2", "tritonclient.grpc"
    for first, second in ((ours, theirs), (theirs, ours)):
        command = f"import {first}; import {second}"
        done = subprocess.run([sys.executable, "-c", command], cwd=REPOSITORY, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("name", ["open_inference.binpb", "open_inference_pb2.pyi"])
def test_the_committed_descriptors_and_stubs_are_up_to_date(tmp_path: Path, name: str) -> None:
    protos = REPOSITORY / "protos/inference"
    outputs = (f"--pyi_out={tmp_path}", f"--descriptor_set_out={tmp_path / 'open_inference.binpb'}")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(protos), *outputs]
    subprocess.run([*command, str(protos / "open_inference.proto")], check=True)
    committed, generated = REPOSITORY / FOLDER / name, tmp_path / name
    assert committed.read_bytes() == generated.read_bytes(), f"{name} is stale: run `make protos` and commit it"


def test_the_descriptors_are_part_of_what_is_installed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert f"{FOLDER}/open_inference_pb2.py" in names
        assert (
            archive.read(f"{FOLDER}/open_inference.binpb")
            == (REPOSITORY / FOLDER / "open_inference.binpb").read_bytes()
        )
