"""Parameters of another project: each array that is missing, unknown or wrong is named, and nothing is unpickled."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policy.exchange import foreign_layouts, import_facts
from policy.exchange.foreign_layouts import ForeignPolicyError
from policy.exchange.layer_plan import plan
from tests.policy.exchange.foreign_models import (
    NETWORK,
    BlockNetwork,
    ForeignModel,
    SkipNetwork,
    random_model,
    write_facts,
)


@pytest.fixture(scope="module")
def model() -> ForeignModel:
    return random_model(BlockNetwork, depth=4, width=12)


def refusal(path: Path, folder: Path, **network: Any) -> str:
    known = import_facts.read(write_facts(folder / "facts.toml", network=NETWORK["scaling-crl"] | network))
    with pytest.raises(ForeignPolicyError) as error:
        foreign_layouts.read(path, known)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))
    return str(error.value).removeprefix(str(path)).removeprefix(": ")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("actor/params/Dense_0/bias", None, "array actor/params/Dense_0/bias is missing"),
        ("actor/params/Dense_0/kernel", None, "array actor/params/Dense_0/kernel is missing; it must be a matrix"),
        ("sa_encoder/params/LayerNorm_3/scale", None, "array sa_encoder/params/LayerNorm_3/scale is missing"),
        ("actor/params/Dense_0/scale", np.zeros(12, np.float32), "array actor/params/Dense_0/scale is not expected"),
        ("actor/params/LayerNorm_5/bias", np.zeros(12, np.float32), "array actor/params/LayerNorm_5/bias is not "),
        (
            "actor/params/Dense_0/kernel",
            np.zeros((8, 12), np.float32),
            "array actor/params/Dense_0/kernel is [8, 12] float32 where the facts need [7, 12] float32",
        ),
        (
            "actor/params/Dense_6/kernel",
            np.zeros((12, 4), np.float32),
            "array actor/params/Dense_6/kernel is [12, 4] float32 where the facts need [12, 3] float32",
        ),
        (
            "g_encoder/params/Dense_5/kernel",
            np.zeros((12, 7), np.float32),
            "array g_encoder/params/Dense_5/kernel is [12, 7] float32 where the facts need [12, 6] float32",
        ),
        (
            "actor/params/Dense_0/bias",
            np.zeros(12),
            "array actor/params/Dense_0/bias is [12] float64 where the facts need [12] float32",
        ),
        (
            "actor/params/Dense_3/bias",
            np.full(12, np.nan, np.float32),
            "array actor/params/Dense_3/bias contains NaN or infinity",
        ),
        (
            "alpha/log_alpha",
            np.zeros((), np.float32),
            "unknown array 'alpha/log_alpha'; arrays are named like actor/params/Dense_0/kernel, and the networks are "
            "actor, sa_encoder, g_encoder",
        ),
        (
            "actor/Dense_0/kernel",
            np.zeros((7, 12), np.float32),
            "unknown array 'actor/Dense_0/kernel'; arrays are named like actor/params/Dense_0/kernel",
        ),
    ],
)
def test_an_array_that_does_not_fit_is_named(
    tmp_path: Path, model: ForeignModel, name: str, array: np.ndarray | None, message: str
) -> None:
    path = model.save(tmp_path / "params.npz", **{name: array})
    assert refusal(path, tmp_path).startswith(message)


def test_another_depth_than_the_facts_say_is_refused(tmp_path: Path, model: ForeignModel) -> None:
    path = model.save(tmp_path / "params.npz")
    assert refusal(path, tmp_path, actor_depth=8) == (
        "actor has 7 Dense layers, but actor_depth in [network] needs 11: 9 hidden ones and 2 at the end"
    )
    assert refusal(path, tmp_path, critic_depth=12) == (
        "sa_encoder has 6 Dense layers, but critic_depth in [network] needs 14: 13 hidden ones and 1 at the end"
    )


def test_a_file_without_encoders_says_how_to_import_the_actor(tmp_path: Path, model: ForeignModel) -> None:
    alone = model._replace(variables={"actor": model.variables["actor"]})
    path = alone.save(tmp_path / "params.npz")
    assert refusal(path, tmp_path) == (
        "there are no arrays of sa_encoder, which are named like sa_encoder/params/Dense_0/kernel; import the actor "
        "alone with critic = false in [network]"
    )
    network = NETWORK["scaling-crl"] | {"critic": False}
    known = import_facts.read(write_facts(tmp_path / "facts.toml", network=network))
    assert foreign_layouts.read(path, known).goal_encoder is None


def test_encoders_that_differ_in_width_or_layer_norm_are_refused(tmp_path: Path, model: ForeignModel) -> None:
    wide = random_model(BlockNetwork, depth=4, width=16)
    mixed = model._replace(variables=model.variables | {"g_encoder": wide.variables["g_encoder"]})
    assert refusal(mixed.save(tmp_path / "params.npz"), tmp_path) == (
        "g_encoder has width 16 where sa_encoder has 12; both need the same width"
    )
    bare = random_model(SkipNetwork, hidden=5, width=12)
    mixed = model._replace(variables=model.variables | {"g_encoder": bare.variables["g_encoder"]})
    assert refusal(mixed.save(tmp_path / "params.npz"), tmp_path) == (
        "only one of sa_encoder and g_encoder has LayerNorm; both need it"
    )


class Exploit:
    """Unpickling it raises an error that no reader expects."""

    def __reduce__(self) -> Any:
        return exec, ("raise KeyboardInterrupt",)


def test_pickled_objects_are_not_read(tmp_path: Path, model: ForeignModel) -> None:
    path = tmp_path / "params.npz"
    arrays: dict[str, Any] = {"actor/params/Dense_0/kernel": np.array([Exploit()])}
    np.savez(path, **arrays)
    assert refusal(path, tmp_path) == (
        "array 'actor/params/Dense_0/kernel' has objects, which are pickled and not read: save arrays only"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", " is not an .npz file of numpy"),
        (b"\x80\x04K\x01.", " is not an .npz file of numpy"),  # a pickle
        (b"PK\x03\x04 and no archive", " is damaged: "),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "params.npz"
    path.write_bytes(content)
    assert refusal(path, tmp_path).startswith(message)


def test_a_single_array_and_a_damaged_archive_are_refused(tmp_path: Path, model: ForeignModel) -> None:
    single = tmp_path / "params.npy"
    np.save(single, np.zeros(3))
    assert refusal(single, tmp_path) == " is one array; save all of them with numpy.savez"
    path = model.save(tmp_path / "params.npz")
    content = path.read_bytes()
    index = content.index(b"\x93NUMPY") + 130  # two bytes after the array's header
    path.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
    assert refusal(path, tmp_path).startswith("array 'actor/params/Dense_0/bias' has damaged data: ")


def test_arrays_of_another_name_shape_or_type_are_refused_before_data_is_read(
    tmp_path: Path, model: ForeignModel
) -> None:
    """The headers promise 4 TB, and no data follows them."""
    path = model.save(tmp_path / "params.npz")
    for name, dtype, message in (
        ("actor/params/Dense_1/kernel", "<f4", "array actor/params/Dense_1/kernel is [1000000, 1000000] float32 where"),
        ("actor/params/Dense_1/kernel", "<f8", "array actor/params/Dense_1/kernel is [1000000, 1000000] float64 where"),
        ("actor/params/more", "<f4", "array actor/params/more is not expected"),
        ("other", "<f4", "unknown array 'other'"),
    ):
        with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "bomb.npz", "w") as bomb:
            for member in whole.namelist():
                if member != f"{name}.npy":
                    bomb.writestr(member, whole.read(member))
            with bomb.open(f"{name}.npy", "w") as file:
                header = {"descr": dtype, "fortran_order": False, "shape": (1_000_000, 1_000_000)}
                np.lib.format.write_array_header_1_0(file, header)
        assert refusal(tmp_path / "bomb.npz", tmp_path).startswith(message)


def test_a_header_without_a_limit_of_its_size_is_refused(tmp_path: Path, model: ForeignModel) -> None:
    path = model.save(tmp_path / "params.npz", **{"actor/params/Dense_0/bias": None})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("actor/params/Dense_0/bias.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(1 << 20))
    assert refusal(path, tmp_path) == (
        "array 'actor/params/Dense_0/bias' has damaged data: its header has format (2, 0) instead of (1, 0)"
    )


@pytest.mark.parametrize(
    ("hidden", "skip", "layer_norm", "message"),
    [
        (6, 4, False, "6 hidden layers with skip_connections = 4 cannot be imported: blocks here are 4 layers long"),
        (9, 2, False, "9 hidden layers with skip_connections = 2 cannot be imported"),
        (9, 8, True, "9 hidden layers with skip_connections = 8 cannot be imported"),
        (4, 0, True, "4 hidden layers with LayerNorm and without a skip connection cannot be imported"),
        (1, 0, True, "1 hidden layer with LayerNorm and without a skip connection cannot be imported"),
    ],
)
def test_layers_that_no_network_of_ours_computes_are_refused(
    hidden: int, skip: int, layer_norm: bool, message: str
) -> None:
    with pytest.raises(ForeignPolicyError) as error:
        plan(hidden, skip_every=skip, layer_norm=layer_norm, use_relu=False)
    assert str(error.value).startswith(message)
    assert str(error.value).endswith("n_hidden must be 1 more than a multiple of 4, such as 5 or 9")
