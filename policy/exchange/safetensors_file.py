"""Arrays in a safetensors file: the parameters of a policy by their dotted names, and its probes.

The names are those of the nested dictionaries in `policy.networks`, such as `actor.blocks.kernel`. Two files with the
same arrays have the same bytes.
"""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from policy.bundle import arrays
from policy.networks import PolicyParams

_METADATA = {"format": "np"}  # a single entry, because the library writes several in any order


def named_arrays(params: PolicyParams, *, critic: bool) -> dict[str, np.ndarray]:
    """Return the float32 arrays of the actor, and with `critic` those of both encoders, by their dotted names."""
    networks = arrays.to_tree(params)
    chosen = {name: tree for name, tree in networks.items() if critic or name == "actor"}
    leaves = jax.tree_util.tree_leaves_with_path(chosen)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def write(path: Path, named: Mapping[str, np.ndarray]) -> None:
    """Write `named` arrays into the file `path`.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    # The library stores arrays of other layouts wrongly.
    contiguous = {name: np.ascontiguousarray(array) for name, array in named.items()}
    # Its save_file would make a file that only the owner can read.
    path.write_bytes(save(contiguous, metadata=_METADATA))


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays in the file `path`, by their names.

    Raises:
        ModuleNotFoundError: safetensors is not installed.
        OSError: the file cannot be read.
        ValueError: it is not a safetensors file, or is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a complete safetensors file: {error}") from error
