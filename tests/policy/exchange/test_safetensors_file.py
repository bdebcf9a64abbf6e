"""Parameters in a safetensors file, opened by its own library."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from policy.exchange import safetensors_file
from policy.networks import PolicyParams


def test_the_actor_has_the_names_and_shapes_of_its_networks(params: PolicyParams) -> None:
    shapes = {name: array.shape for name, array in safetensors_file.named_arrays(params, critic=False).items()}
    assert shapes == {  # 3 + 2 inputs, width 8, one block, mean and log-std of 2 values
        "actor.input.kernel": (5, 8),
        "actor.input.bias": (8,),
        "actor.input.norm_scale": (8,),
        "actor.input.norm_bias": (8,),
        "actor.blocks.kernel": (1, 4, 8, 8),
        "actor.blocks.bias": (1, 4, 8),
        "actor.blocks.norm_scale": (1, 4, 8),
        "actor.blocks.norm_bias": (1, 4, 8),
        "actor.output.kernel": (8, 4),
        "actor.output.bias": (4,),
    }


def test_with_the_critic_both_encoders_are_there(params: PolicyParams) -> None:
    arrays = safetensors_file.named_arrays(params, critic=True)
    assert {name.partition(".")[0] for name in arrays} == {"actor", "state_action_encoder", "goal_encoder"}
    assert arrays["goal_encoder.output.kernel"].shape == (4, 5)


def test_the_library_reads_the_same_bits(tmp_path: Path) -> None:
    array = np.array([[0.1, -0.0, np.nextafter(np.float32(1), np.float32(2))]], np.float32)
    safetensors_file.write(tmp_path / "file", {"a": array, "a.transposed": array.T})
    with safe_open(tmp_path / "file", "np") as file:
        assert sorted(file.keys()) == ["a", "a.transposed"]
        assert file.get_tensor("a").tobytes() == array.tobytes()
    assert safetensors_file.read(tmp_path / "file")["a.transposed"].shape == (3, 1)


def test_arrays_that_are_not_contiguous_are_stored_as_they_look(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    safetensors_file.write(tmp_path / "file", {"a": array.T[::-1]})
    assert safetensors_file.read(tmp_path / "file")["a"].tolist() == [[2, 5], [1, 4], [0, 3]]


def test_the_order_of_the_arrays_does_not_change_the_bytes(tmp_path: Path) -> None:
    one, two = np.zeros(3, np.float32), np.ones((2, 2), np.float32)
    safetensors_file.write(tmp_path / "first", {"one": one, "two": two})
    safetensors_file.write(tmp_path / "second", {"two": two, "one": one})
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_the_file_can_be_read_by_those_who_can_read_others_of_this_user(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"")
    safetensors_file.write(tmp_path / "file", {"a": np.zeros(1, np.float32)})
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    safetensors_file.write(tmp_path / "file", {"a": np.zeros(3, np.float32)})
    content = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(content[:-1])
    with pytest.raises(ValueError, match="file is not a complete safetensors file"):
        safetensors_file.read(tmp_path / "file")
