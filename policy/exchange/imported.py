"""Import a policy of scaling-crl or JaxGCRL: parameters in an .npz file and facts in TOML become a published policy.

The imported policy computes the same actions and energies as the original one, except for rounding:

* the two Dense layers of their actor, mean and log-std, become the two halves of our output Dense; both projects squash
  the log-std into [-5, 2] as `policy.acting` does, and the mean with tanh;
* `layer_plan` says how their hidden layers become blocks of four;
* JaxGCRL's energy `norm` is -sqrt(distance^2 + 1e-6), ours is -distance: one more value in the encodings, 1e-3 in one
  and 0 in the other, adds the 1e-6. Its `l2` is our `l2_squared`.

States are neither normalized nor changed in the sign of quaternions, because their networks see them as they are.
"""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from policy import bundle
from policy.exchange import foreign_layouts, import_facts, new_folder
from policy.exchange.foreign_layouts import ForeignNetwork, ForeignPolicy, ForeignPolicyError, HiddenLayer
from policy.exchange.import_facts import EXACT_DISTANCE, Facts
from policy.exchange.layer_plan import LayerPlan, plan
from policy.networks import Network, PolicyParams, policy_modules
from policy.spec import LAYERS_PER_BLOCK, PolicySpec

PROBES = 32
_PROBE_SEED = 0
_ROOT_OF_LEAST_SQUARE = 1e-3  # of JaxGCRL's energy `norm`
_ENERGIES = {EXACT_DISTANCE: "l2", "norm": "l2", "l2": "l2_squared", "dot": "dot"}


class Imported(NamedTuple):
    """A policy of another project as one of ours."""

    spec: PolicySpec
    params: PolicyParams


def publish(
    params: Path,
    facts: Path,
    root: Path,
    *,
    version: int,
    wall_clock: Callable[[datetime.tzinfo], datetime.datetime] = datetime.datetime.now,
) -> Path:
    """Import a policy, publish it as version `version` in `root` and return its folder.

    Args:
        params: an .npz file, see `foreign_layouts`.
        facts: a TOML file, see `import_facts_template`.
        wall_clock: gives the date of the import.

    Raises:
        FactsError, ForeignPolicyError: it cannot be imported; the message names the fact or the array.
        FileExistsError: the version is already published.
        ValueError: the version is negative or has more than 18 digits, or `root` is in a published or exported folder.
        FloatingPointError: an action or energy is NaN or infinity.
        OSError: a file cannot be read or written.
    """
    if problem := new_folder.problem(root):
        raise ValueError(problem)
    known = import_facts.read(facts)
    foreign = foreign_layouts.read(params, known)
    policy = convert(foreign, known)
    state, goal = probe_inputs(policy.spec, known)
    return bundle.write(
        root,
        version,
        sweeps=False,  # another process may publish in the same folder
        spec=policy.spec,
        params=policy.params,
        probe_state=state,
        probe_goal=goal,
        provenance={
            "imported": {
                "layout": known.network.layout,
                "parameters": params.name,
                "parameters_sha256": foreign.sha256,
                "facts": dict(known.stated),
                "probes": "random: uniform in the ranges of the facts, standard normal without a range",
            },
            "date": wall_clock(datetime.UTC).isoformat(timespec="seconds"),
        },
    )


def convert(policy: ForeignPolicy, facts: Facts) -> Imported:
    """Return the specification and the parameters of ours that compute what `policy` computes.

    Raises:
        FactsError: a fact is not valid.
        ForeignPolicyError: no network of ours computes the same.
    """
    actor_plan = _plan(policy.actor, facts)
    sizes: dict[str, Any] = {
        "activation": "relu" if facts.network.use_relu else "swish",
        "layer_norm": policy.actor.layer_norm,
        "residual": actor_plan.residual,
        "actor_depth": _depth(policy.actor, actor_plan),
        "actor_width": policy.actor.width * actor_plan.width_factor,
        "critic": "none",
        **dict.fromkeys(("critic_depth", "critic_width", "representation_dim"), 0),
    }
    encoders: dict[str, dict[str, Any]] = {}
    if policy.state_action_encoder is not None and policy.goal_encoder is not None:
        critic_sizes, encoders = _critic(policy.state_action_encoder, policy.goal_encoder, facts, like=policy.actor)
        sizes |= critic_sizes
    spec = facts.spec(**sizes)
    modules = policy_modules(spec)
    actor = Network(_arrays(policy.actor, actor_plan), modules.actor)
    networks = {name: Network(arrays, getattr(modules, name)) for name, arrays in encoders.items()}
    return Imported(spec, PolicyParams(actor)._replace(**networks))


def probe_inputs(spec: PolicySpec, facts: Facts) -> tuple[np.ndarray, np.ndarray]:
    """Return random states [PROBES, state_dim] and goals [PROBES, goal_dim], always the same ones for the same facts.

    They are uniform in the ranges of the facts, and standard normal without a range.
    """
    random = np.random.default_rng(_PROBE_SEED)

    def inputs(name: str, dim: int) -> np.ndarray:
        low, high = (facts.ranges.get(f"{name}_{end}") for end in ("low", "high"))
        if low is None or high is None:
            return random.normal(size=(PROBES, dim)).astype(np.float32)
        return random.uniform(low, high, size=(PROBES, dim)).astype(np.float32)

    return inputs("state", spec.state_dim), inputs("goal", spec.goal_dim)


def _critic(
    state_action: ForeignNetwork, goal: ForeignNetwork, facts: Facts, *, like: ForeignNetwork
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the fields of the specification about the critic, and the parameters of both encoders by their names.

    Args:
        like: the actor. One field of the specification says for all networks whether they have LayerNorm.
    """
    if state_action.layer_norm != like.layer_norm:
        which = "encoders have" if state_action.layer_norm else "actor has"
        raise ForeignPolicyError(
            f"only the {which} LayerNorm, and a policy here has it in all of its networks or in none; "
            "import the actor alone with critic = false in [network]"
        )
    where = _plan(state_action, facts)
    constants = (_ROOT_OF_LEAST_SQUARE, 0.0) if facts.network.energy == "norm" else (None, None)
    extras = [() if constant is None else (constant,) for constant in constants]
    sizes = {
        "critic": "energy",
        "critic_depth": _depth(state_action, where),
        "critic_width": state_action.width * where.width_factor,
        "representation_dim": len(state_action.heads[0].bias) + len(extras[0]),
        "energy": _ENERGIES[facts.network.energy],
    }
    return sizes, {
        "state_action_encoder": _arrays(state_action, where, extra_outputs=extras[0]),
        "goal_encoder": _arrays(goal, where, extra_outputs=extras[1]),
    }


def _plan(network: ForeignNetwork, facts: Facts) -> LayerPlan:
    return plan(
        len(network.hidden),
        skip_every=facts.network.skip_every,
        layer_norm=network.layer_norm,
        use_relu=facts.network.use_relu,
    )


def _depth(network: ForeignNetwork, where: LayerPlan) -> int:
    return len(network.hidden) - 1 + where.identity_layers


def _arrays(network: ForeignNetwork, where: LayerPlan, *, extra_outputs: tuple[float, ...] = ()) -> dict[str, Any]:
    """Return the parameters of the network of ours that computes what `network` computes.

    Args:
        extra_outputs: constants after the outputs of `network`.
    """
    layers = [_widened(layer, where, first=index == 0) for index, layer in enumerate(network.hidden)]
    layers += [_identity(network.width, where)] * where.identity_layers
    first, *others = map(_named, layers)
    names = first.keys()
    stacked = {name: np.stack([layer[name] for layer in others]) for name in names}
    blocks = {name: array.reshape(-1, LAYERS_PER_BLOCK, *array.shape[1:]) for name, array in stacked.items()}
    kernel = np.concatenate([head.kernel for head in network.heads], axis=1)
    bias = np.concatenate([head.bias for head in network.heads])
    kernel = np.pad(kernel, ((0, 0), (0, len(extra_outputs))))
    if where.doubled:
        kernel = np.concatenate([kernel, -kernel])
    return {
        "input": first,
        "blocks": blocks,
        "output": {"kernel": kernel, "bias": np.concatenate([bias, np.asarray(extra_outputs, np.float32)])},
    }


def _named(layer: HiddenLayer) -> dict[str, np.ndarray]:
    return {name: array for name, array in layer._asdict().items() if array is not None}


def _widened(layer: HiddenLayer, where: LayerPlan, *, first: bool) -> HiddenLayer:
    """Return `layer` in our width: a second half, if there is one, stays 0."""
    if not where.doubled:
        return layer
    width = len(layer.bias)
    rows = 0 if first else width
    return layer._replace(kernel=np.pad(layer.kernel, ((0, rows), (0, width))), bias=np.pad(layer.bias, (0, width)))


def _identity(width: int, where: LayerPlan) -> HiddenLayer:
    """Return a layer that passes its input on, see `layer_plan`."""
    kernel = np.eye(width, dtype=np.float32)
    if where.doubled:  # (a, b) stands for x = a - b, and becomes (x, -x) before the activation
        kernel = np.block([[kernel, -kernel], [-kernel, kernel]])
    return HiddenLayer(kernel, np.zeros(len(kernel), np.float32), None, None)
