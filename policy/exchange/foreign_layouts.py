"""The parameters of scaling-crl and JaxGCRL in an .npz file: names, shapes, and which of them belong together.

Both projects build a network from flax's Dense and LayerNorm in one module, so the layers are numbered in the order of
their calls, and an array is named like the path to it:

    actor/params/Dense_0/kernel            [state_dim + goal_dim, width]
    actor/params/Dense_0/bias              [width]
    actor/params/LayerNorm_0/scale, bias   [width]; absent without LayerNorm
    ...                                    one Dense, and one LayerNorm, for each hidden layer
    actor/params/Dense_<n>, Dense_<n+1>    [width, action_dim]: the mean, and the log-std before squashing
    sa_encoder/params/...                  (state, action) -> [representation_dim]: the last Dense
    g_encoder/params/...                   goal -> [representation_dim]: the last Dense

A hidden layer is Dense, LayerNorm, activation. LayerNorm has flax's epsilon, 1e-6. Read in wang-kevin3290/scaling-crl,
train.py at 7132ebb, and MichalBortkiewicz/JaxGCRL, jaxgcrl/agents/crl/networks.py at a87dbc1.
"""

import contextlib
import hashlib
import io
import re
import zipfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from policy import plain_file
from policy.exchange.import_facts import SCALING_CRL, Facts

ACTOR = "actor"
STATE_ACTION_ENCODER = "sa_encoder"
GOAL_ENCODER = "g_encoder"
_NETWORKS = (ACTOR, STATE_ACTION_ENCODER, GOAL_ENCODER)
_EXAMPLE = "actor/params/Dense_0/kernel"
_DENSE = re.compile(r"Dense_(\d+)")
_NPY_VERSION = (1, 0)  # later ones are for arrays with named columns
_PICKLED = "objects, which are pickled and not read: save arrays only"


class ForeignPolicyError(ValueError):
    """Parameters that cannot be imported; the message names the array and says what is allowed."""


class HiddenLayer(NamedTuple):
    """Dense, LayerNorm, activation. norm_* are None without LayerNorm."""

    kernel: np.ndarray  # [in, width]
    bias: np.ndarray  # [width]
    norm_scale: np.ndarray | None  # [width]
    norm_bias: np.ndarray | None  # [width]


class Head(NamedTuple):
    """An affine map of the last hidden layer."""

    kernel: np.ndarray  # [width, out]
    bias: np.ndarray  # [out]


class ForeignNetwork(NamedTuple):
    """One network of another project."""

    hidden: tuple[HiddenLayer, ...]
    heads: tuple[Head, ...]

    @property
    def width(self) -> int:
        """Values in a hidden layer."""
        return len(self.hidden[0].bias)

    @property
    def layer_norm(self) -> bool:
        """Whether the hidden layers have LayerNorm."""
        return self.hidden[0].norm_scale is not None


class ForeignPolicy(NamedTuple):
    """The networks of one policy of another project. The encoders are None if the critic is not imported.

    `sha256` is that of the file with the parameters, as it was read.
    """

    actor: ForeignNetwork
    state_action_encoder: ForeignNetwork | None
    goal_encoder: ForeignNetwork | None
    sha256: str


def read(path: Path, facts: Facts) -> ForeignPolicy:
    """Read the networks in the .npz file `path`, of the sizes that `facts` say.

    The names, shapes and types of all arrays are checked before their data is read: a small file can hold huge arrays.

    Raises:
        ForeignPolicyError: it is not an .npz file, or an array is missing, unknown, of another shape or type, or not
            finite.
        OSError: the file cannot be read.
    """
    with plain_file.opened(path) as file:
        content = file.read()  # once, so that the hash is that of the arrays
    sha256 = hashlib.sha256(content).hexdigest()
    with _archive(path, io.BytesIO(content)) as stored:
        try:
            _require_known(stored.files)
            _policy({name: _without_data(stored, name) for name in stored.files}, facts, sha256=sha256)
            return _policy({name: _array(stored, name) for name in stored.files}, facts, sha256=sha256)
        except ForeignPolicyError as error:
            raise ForeignPolicyError(f"{path}: {error}") from error


def _policy(arrays: Mapping[str, np.ndarray], facts: Facts, *, sha256: str) -> ForeignPolicy:
    network = facts.network
    labels = ("state_names", "goal_names", "action_names")
    state_dim, goal_dim, action_dim = (len(facts.policy[field]) for field in labels)
    actor_fact = "actor_depth" if network.layout == SCALING_CRL else "n_hidden"
    _require_hidden(arrays, ACTOR, network.actor_hidden, heads=2, fact=actor_fact)
    actor = _network(
        arrays, ACTOR, in_dim=state_dim + goal_dim, hidden=network.actor_hidden, out_dims=(action_dim,) * 2
    )
    if not network.critic:
        return ForeignPolicy(actor, None, None, sha256)
    encoders: list[ForeignNetwork] = []
    critic_fact = "critic_depth" if network.layout == SCALING_CRL else "n_hidden"
    representation_dim: int | None = None
    for name, in_dim in ((STATE_ACTION_ENCODER, state_dim + action_dim), (GOAL_ENCODER, goal_dim)):
        hidden = network.critic_hidden
        _require_hidden(arrays, name, hidden, heads=1, fact=critic_fact)
        encoders.append(_network(arrays, name, in_dim=in_dim, hidden=hidden, out_dims=(representation_dim,)))
        representation_dim = len(encoders[0].heads[0].bias)
    first, second = encoders
    if first.width != second.width:
        raise ForeignPolicyError(
            f"{GOAL_ENCODER} has width {second.width} where {STATE_ACTION_ENCODER} has {first.width}; both need the "
            "same width"
        )
    if first.layer_norm != second.layer_norm:
        raise ForeignPolicyError(f"only one of {STATE_ACTION_ENCODER} and {GOAL_ENCODER} has LayerNorm; both need it")
    return ForeignPolicy(actor, first, second, sha256)


def _archive(path: Path, content: io.BytesIO) -> np.lib.npyio.NpzFile:
    """Open an .npz file, and read only the names of its arrays."""
    try:
        stored = np.load(content, allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:  # numpy reports an unknown file as a pickle
        raise ForeignPolicyError(f"{path} is not an .npz file of numpy") from error
    except Exception as error:  # zipfile raises BadZipFile, NotImplementedError ...
        raise ForeignPolicyError(f"{path} is damaged: {error}") from error
    if not isinstance(stored, np.lib.npyio.NpzFile):
        raise ForeignPolicyError(f"{path} is one array; save all of them with numpy.savez")
    return stored


def _require_known(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name.partition("/")[0] not in _NETWORKS]:
        raise ForeignPolicyError(
            f"unknown array {unknown[0]!r:.120}; arrays are named like {_EXAMPLE}, and the networks are "
            f"{', '.join(_NETWORKS)}"
        )


def _without_data(stored: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """Return an array with the shape and the type of one in the file, without its data. It needs no memory."""
    with _named_errors(name), cast("zipfile.ZipFile", stored.zip).open(f"{name}.npy") as member:
        version = np.lib.format.read_magic(member)
        if version != _NPY_VERSION:  # its header has at most 64 KiB
            raise ValueError(f"its header has format {version} instead of {_NPY_VERSION}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        if dtype.hasobject:
            raise ValueError("allow_pickle is not")
        return np.broadcast_to(np.zeros((), dtype), shape)


def _array(stored: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """Return an array of the file with its data. Objects, which are pickled, are refused."""
    with _named_errors(name):
        array = np.asarray(stored[name])
    if not np.isfinite(array).all():
        raise ForeignPolicyError(f"array {name:.120} contains NaN or infinity")
    return array


@contextlib.contextmanager
def _named_errors(name: str) -> Generator[None]:
    """Turn the errors of reading an array into ForeignPolicyError, which names the array."""
    try:
        yield
    except Exception as error:  # numpy raises zipfile, zlib, ValueError ... for a damaged archive
        problem = _PICKLED if "allow_pickle" in str(error) else f"damaged data: {error}"
        raise ForeignPolicyError(f"array {name!r:.120} has {problem}") from error


def _require_hidden(arrays: Mapping[str, np.ndarray], network: str, hidden: int, *, heads: int, fact: str) -> None:
    """Refuse a network with another number of hidden layers than the facts say."""
    parts = [name.split("/") for name in arrays]
    dense = {words[2] for words in parts if words[0] == network and len(words) == 4 and _DENSE.fullmatch(words[2])}
    if not dense:
        advice = "" if network == ACTOR else "; import the actor alone with critic = false in [network]"
        raise ForeignPolicyError(
            f"there are no arrays of {network}, which are named like {network}/params/Dense_0/kernel{advice}"
        )
    if len(dense) != hidden + heads:
        raise ForeignPolicyError(
            f"{network} has {len(dense)} Dense layers, but {fact} in [network] needs {hidden + heads}: "
            f"{hidden} hidden ones and {heads} at the end"
        )


def _network(
    arrays: Mapping[str, np.ndarray],
    network: str,
    *,
    in_dim: int,
    hidden: int,
    out_dims: tuple[int | None, ...],
) -> ForeignNetwork:
    """Return one network after checking every array of it.

    Args:
        hidden: hidden layers.
        out_dims: of the Dense layers at the end; None: the size that the array has.
    """
    prefix = f"{network}/params"
    own = {name.removeprefix(f"{prefix}/"): array for name, array in arrays.items() if name.startswith(f"{prefix}/")}
    if stray := [name for name in arrays if name.startswith(f"{network}/") and not name.startswith(f"{prefix}/")]:
        raise ForeignPolicyError(f"unknown array {stray[0]!r:.120}; arrays are named like {prefix}/Dense_0/kernel")
    layer_norm = any(name.startswith("LayerNorm_") for name in own)
    width = _last_size(own, "Dense_0", network)
    outs = [
        _last_size(own, f"Dense_{hidden + index}", network) if out is None else out
        for index, out in enumerate(out_dims)
    ]
    expected = dict(_shapes(in_dim, width, hidden=hidden, outs=outs, layer_norm=layer_norm))
    _require_equal(own, expected, prefix)
    layers = tuple(
        HiddenLayer(
            own[f"Dense_{index}/kernel"],
            own[f"Dense_{index}/bias"],
            own[f"LayerNorm_{index}/scale"] if layer_norm else None,
            own[f"LayerNorm_{index}/bias"] if layer_norm else None,
        )
        for index in range(hidden)
    )
    heads = (
        Head(own[f"Dense_{index}/kernel"], own[f"Dense_{index}/bias"]) for index in range(hidden, hidden + len(outs))
    )
    return ForeignNetwork(layers, tuple(heads))


def _last_size(own: Mapping[str, np.ndarray], dense: str, network: str) -> int:
    kernel = own.get(f"{dense}/kernel")
    if kernel is None or kernel.ndim != 2 or not kernel.size:
        found = "is missing" if kernel is None else f"has shape {list(kernel.shape)}"
        raise ForeignPolicyError(f"array {network}/params/{dense}/kernel {found}; it must be a matrix")
    return kernel.shape[1]


def _shapes(
    in_dim: int, width: int, *, hidden: int, outs: list[int], layer_norm: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and the shape of every array of a network."""
    for index, out in enumerate((*(width,) * hidden, *outs)):
        yield f"Dense_{index}/kernel", (in_dim if index == 0 else width, out)
        yield f"Dense_{index}/bias", (out,)
        if layer_norm and index < hidden:
            yield f"LayerNorm_{index}/scale", (width,)
            yield f"LayerNorm_{index}/bias", (width,)


def _require_equal(own: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], prefix: str) -> None:
    for name in sorted(own.keys() | expected.keys()):
        where = f"array {prefix}/{name:.120}"
        if name not in expected:
            raise ForeignPolicyError(f"{where} is not expected: the facts describe a network without it")
        if name not in own:
            raise ForeignPolicyError(f"{where} is missing")
        array, shape = own[name], expected[name]
        if array.shape != shape or array.dtype != np.float32:
            raise ForeignPolicyError(
                f"{where} is {list(array.shape)} {array.dtype} where the facts need {list(shape)} float32"
            )
