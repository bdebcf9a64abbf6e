"""Facts about a policy of scaling-crl or JaxGCRL that its parameters do not contain, so that a user must state them.

They are a TOML file, see `import_facts_template`. Its table `policy` has fields of `PolicySpec`. Its table `network`
has the settings that the policy was trained with, under the names of the other project. Its table `probes` has ranges
of states and goals.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from policy import plain_file
from policy.spec import LAYERS_PER_BLOCK, PolicySpec, SpecError

SCALING_CRL = "scaling-crl"
JAXGCRL = "jaxgcrl"
LAYOUTS = (SCALING_CRL, JAXGCRL)
EXACT_DISTANCE = "distance"  # of scaling-crl, which has one energy without a name
JAXGCRL_ENERGIES = ("norm", "l2", "dot")

_LABELS = ("state_names", "goal_names", "action_names")
_POLICY = (
    *("name", "environment", *_LABELS, "action_low", "action_high", "control_period_s", "success_radius"),
    *("actuator_kind", "rest_action", "action_meaning", "max_action_change"),
)
_NETWORK: Mapping[str, tuple[type, str]] = MappingProxyType(
    {
        "layout": (str, "a string"),
        "use_relu": (bool, "true or false"),
        "critic": (bool, "true or false"),
        "actor_depth": (int, "an integer"),
        "critic_depth": (int, "an integer"),
        "n_hidden": (int, "an integer"),
        "skip_connections": (int, "an integer"),
        "energy_fn": (str, "a string"),
    }
)
_OF_EACH = ("layout", "use_relu", "critic")
_OF_LAYOUT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {SCALING_CRL: ("actor_depth", "critic_depth"), JAXGCRL: ("n_hidden", "skip_connections", "energy_fn")}
)
_OF_CRITIC = frozenset({"critic_depth", "energy_fn"})
_RANGES = (("state_low", "state_high"), ("goal_low", "goal_high"))
_LARGEST = 1e38  # fits into a float32, like every state
_MOST_VALUES = 100_000


class FactsError(ValueError):
    """Facts that are missing, unknown or wrong; the message names the fact and says what is allowed."""


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """How the networks of the other project are built.

    Args:
        layout: one of LAYOUTS.
        actor_hidden: hidden layers of the actor, the first one included.
        critic_hidden: hidden layers of each encoder; 0 if the critic is not imported.
        skip_every: number of layers, after the first one, from one skip connection to the next; 0: none.
        use_relu: whether the activation is relu; else it is swish.
        energy: EXACT_DISTANCE, or one of JAXGCRL_ENERGIES.
        critic: whether the critic is imported.
    """

    layout: str
    actor_hidden: int
    critic_hidden: int
    skip_every: int
    use_relu: bool
    energy: str
    critic: bool


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All facts about one policy.

    Args:
        policy: fields of `PolicySpec`, all but the sizes of the networks.
        network: how the networks are built.
        ranges: state_low, state_high, goal_low and goal_high, those that are given.
        stated: the tables as they are in the file, for the provenance.
    """

    policy: Mapping[str, Any]
    network: NetworkFacts
    ranges: Mapping[str, tuple[float, ...]]
    stated: Mapping[str, Any]

    def spec(self, **sizes: Any) -> PolicySpec:
        """Return the specification of the policy.

        Args:
            sizes: the fields of `PolicySpec` about its networks.

        Raises:
            FactsError: a fact is not valid.
        """
        try:
            return PolicySpec.from_fields({**self.policy, **sizes})
        except SpecError as error:
            raise FactsError(f"[policy] {error}") from error


def read(path: Path) -> Facts:
    """Read and check the facts in a TOML file.

    Raises:
        FactsError: the file is not TOML, or a fact is missing, unknown or wrong.
        OSError: the file cannot be read.
    """
    try:
        with plain_file.opened(path) as file:
            document = tomllib.loads(file.read().decode())
    except (ValueError, RecursionError) as error:
        raise FactsError(f"{path} is not TOML: {error}") from error
    try:
        return _facts(document)
    except FactsError as error:
        raise FactsError(f"{path}: {error}") from error


def _facts(document: Mapping[str, Any]) -> Facts:
    if unknown := sorted(document.keys() - {"policy", "network", "probes"}):
        raise FactsError(f"unknown table or fact {unknown[0]!r:.80}; the tables are [policy], [network] and [probes]")
    policy, network, probes = (_table(document, name) for name in ("policy", "network", "probes"))
    _require_known("policy", policy, _POLICY)
    for field in _LABELS:
        if field in policy:
            policy[field] = _labels(field, policy[field])
    _require_known("probes", probes, [name for names in _RANGES for name in names])
    settings = _network(network)
    facts = Facts(policy=policy, network=settings, ranges={}, stated=document)
    spec = facts.spec(actor_depth=LAYERS_PER_BLOCK, actor_width=1, critic="none", **_no_critic())
    ranges: dict[str, tuple[float, ...]] = {}
    for names, dim in zip(_RANGES, (spec.state_dim, spec.goal_dim), strict=True):
        ranges |= _range(probes, names, dim=dim)
    return Facts(policy=policy, network=settings, ranges=ranges, stated=document)


def _no_critic() -> dict[str, int]:
    return dict.fromkeys(("critic_depth", "critic_width", "representation_dim"), 0)


def _table(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise FactsError(f"{name} must be a table that starts with the line [{name}], got {table!r:.80}")
    return dict(cast("dict[str, Any]", table))


def _require_known(table: str, facts: Mapping[str, Any], known: tuple[str, ...] | list[str]) -> None:
    if unknown := sorted(facts.keys() - set(known)):
        raise FactsError(f"unknown fact {unknown[0]!r:.80} in [{table}]; allowed are {', '.join(known)}")


def _labels(field: str, stated: Any) -> Any:
    """Return the names of the values; a number of values stands for numbered names."""
    if not isinstance(stated, int) or isinstance(stated, bool):
        return stated  # PolicySpec checks it
    if not 1 <= stated <= _MOST_VALUES:
        raise FactsError(f"[policy] {field} must be a list of names, or their number, 1 or more, got {stated}")
    return [f"{field.removesuffix('_names')} {index}" for index in range(stated)]


def _network(stated: Mapping[str, Any]) -> NetworkFacts:
    """Check the table `network` and return its facts."""
    layout = stated.get("layout", "")
    if layout not in LAYOUTS:
        raise FactsError(f"[network] layout must be {' or '.join(map(repr, LAYOUTS))}, got {layout!r:.80}")
    known = (*_OF_EACH, *_OF_LAYOUT[layout])
    if unknown := sorted(stated.keys() - set(known)):
        raise FactsError(
            f"unknown fact {unknown[0]!r:.80} in [network]; for the layout {layout}, allowed are {', '.join(known)}"
        )
    for name, value in stated.items():
        kind, words = _NETWORK[name]
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise FactsError(f"[network] {name} must be {words}, got {value!r:.80}")
    critic = stated.get("critic", True)
    needed = [name for name in known if name != "critic" and (critic or name not in _OF_CRITIC)]
    if missing := [name for name in needed if name not in stated]:
        raise FactsError(f"[network] lacks {', '.join(missing)}, which the layout {layout} needs")
    build = _scaling_crl if layout == SCALING_CRL else _jaxgcrl
    return build(stated, critic=critic)


def _scaling_crl(stated: Mapping[str, Any], *, critic: bool) -> NetworkFacts:
    depths = {name: stated[name] for name in ("actor_depth", "critic_depth") if critic or name == "actor_depth"}
    for name, depth in depths.items():
        if depth < LAYERS_PER_BLOCK:
            raise FactsError(
                f"[network] {name} must be a positive multiple of {LAYERS_PER_BLOCK}, got {depth}: a policy here has "
                "one residual block or more"
            )
        if built := depth % LAYERS_PER_BLOCK:
            raise FactsError(
                f"[network] {name} must be a positive multiple of {LAYERS_PER_BLOCK}, got {depth}; scaling-crl rounds "
                f"it down, so write the depth that was trained, {depth - built}"
            )
    return NetworkFacts(
        layout=SCALING_CRL,
        actor_hidden=1 + depths["actor_depth"],
        critic_hidden=1 + depths["critic_depth"] if critic else 0,
        skip_every=LAYERS_PER_BLOCK,
        use_relu=stated["use_relu"],
        energy=EXACT_DISTANCE,
        critic=critic,
    )


def _jaxgcrl(stated: Mapping[str, Any], *, critic: bool) -> NetworkFacts:
    hidden, skip = stated["n_hidden"], stated["skip_connections"]
    if hidden < 1:
        raise FactsError(f"[network] n_hidden must be 1 or more, got {hidden}")
    if skip < 0:
        raise FactsError(f"[network] skip_connections must be 0 or more, got {skip}")
    energy = stated.get("energy_fn", "norm")
    if critic and energy == "cosine":
        raise FactsError(
            "[network] energy_fn cosine cannot be imported: JaxGCRL divides by the norm of the whole batch, so the "
            "energy of a row depends on the other rows; import the actor alone with critic = false"
        )
    if energy not in JAXGCRL_ENERGIES and critic:
        raise FactsError(f"[network] energy_fn must be one of {', '.join(JAXGCRL_ENERGIES)}, got {energy!r:.80}")
    return NetworkFacts(
        layout=JAXGCRL,
        actor_hidden=hidden,
        critic_hidden=hidden if critic else 0,
        skip_every=skip if skip < hidden else 0,  # a later skip is never reached
        use_relu=stated["use_relu"],
        energy=energy,
        critic=critic,
    )


def _range(stated: Mapping[str, Any], names: tuple[str, str], *, dim: int) -> dict[str, tuple[float, ...]]:
    """Return both ends of a range if they are given, checked."""
    given = [name for name in names if name in stated]
    if not given:
        return {}
    if len(given) < len(names):
        raise FactsError(f"[probes] {' and '.join(names)} belong together, got {given[0]} alone")
    ends: dict[str, tuple[float, ...]] = {}
    for name in names:
        numbers = stated[name]
        if not (isinstance(numbers, list) and len(cast("list[Any]", numbers)) == dim and all(map(_is_number, numbers))):
            raise FactsError(
                f"[probes] {name} must be {dim} finite numbers of at most {_LARGEST:g}, got {numbers!r:.80}"
            )
        ends[name] = tuple(map(float, cast("list[float]", numbers)))
    low, high = (ends[name] for name in names)
    if not all(least <= most for least, most in zip(low, high, strict=True)):
        raise FactsError(f"[probes] {names[0]} must not be above {names[1]}")
    return ends


def _is_number(value: Any) -> bool:
    """Return whether `value` is a float32; NaN and infinity fail the comparison."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
