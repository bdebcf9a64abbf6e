"""PolicySpec: the sizes, names, units and limits that are stored with a policy."""

import dataclasses
import json
import math
from typing import Any, Self, cast

LAYERS_PER_BLOCK = 4
QUATERNION_SIZE = 4
ENERGY_NAMES = ("l2", "l2_squared", "dot", "cosine")  # of the table in `policy.energy`, which imports JAX
ACTIVATIONS = ("swish", "relu")
ACTUATOR_KINDS = ("position", "velocity", "torque", "other")
ACTION_MEANINGS = ("absolute", "increment")
CRITICS = ("energy", "none")
ACTION_RANGE = 2.0  # from -1 to 1
_LARGEST_LIMIT = 1e38  # of an action; twice as much is still a float32, which the contract and the networks use
_LARGEST_STATISTIC = 3.4028234663852886e38  # the largest float32
_SMALLEST_STD = 1e-30  # to divide by, as a float32
_ITEMS: dict[Any, type] = {tuple[str, ...]: str, tuple[float, ...]: float, tuple[int, ...]: int}
_JSON_TYPES: dict[Any, str] = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


class SpecError(ValueError):
    """A specification that is not valid; the message names the field and what is allowed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """The inputs and outputs of a policy, complete and checked when it is constructed.

    Names include their unit in brackets (`"x [m]"`). A policy gives actions in [-1, 1]; `action_low` and `action_high`
    are what -1 and 1 stand for, in the unit of `action_names`. `energy`, `activation`, `layer_norm` and `residual`
    default to the paper's choices, which its ablations change (arXiv 2503.14858, section 4).

    Args:
        actuator_kind: [action_dim], what each action drives: position, velocity, torque or other. Empty: other.
        rest_action: [action_dim] in [-1, 1], the action that leaves the robot at rest. Empty: the value 0 in the
            action's own unit, clipped to its limits.
        action_meaning: [action_dim], absolute, or increment: the action changes a target. Empty: absolute.
        max_action_change: [action_dim] in (0, 2], the largest change of an action from one control period to the
            next. Empty: no limit.
        action_chunk: consecutive actions that one inference gives.
        critic: energy, or none for a policy without a critic. Its sizes are then 0.
        normalize_observations: whether states are normalized with `normalization_mean` and `normalization_std`.
        normalization_mean: [state_dim] or empty; mean of the states before learning began.
        normalization_std: [state_dim] or empty; their standard deviation.
        seen_mean: [state_dim] or empty; mean of all states seen in training. Like the next three, never applied.
        seen_std: [state_dim] or empty; their standard deviation.
        seen_low: [state_dim] or empty; their smallest values.
        seen_high: [state_dim] or empty; their largest values.
        state_quaternions: index of the first value (w) of each quaternion (w, x, y, z) in the state.
        goal_quaternions: the same in the goal.

    Raises:
        SpecError: a field is empty, out of range, or does not fit the others.
    """

    name: str
    environment: str
    state_names: tuple[str, ...]
    goal_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    control_period_s: float
    success_radius: float
    actor_depth: int
    actor_width: int
    critic_depth: int
    critic_width: int
    representation_dim: int
    energy: str = "l2"
    activation: str = "swish"
    layer_norm: bool = True
    residual: bool = True
    actuator_kind: tuple[str, ...] = ()
    rest_action: tuple[float, ...] = ()
    action_meaning: tuple[str, ...] = ()
    max_action_change: tuple[float, ...] = ()
    action_chunk: int = 1
    critic: str = "energy"
    normalize_observations: bool = False
    normalization_mean: tuple[float, ...] = ()
    normalization_std: tuple[float, ...] = ()
    seen_mean: tuple[float, ...] = ()
    seen_std: tuple[float, ...] = ()
    seen_low: tuple[float, ...] = ()
    seen_high: tuple[float, ...] = ()
    state_quaternions: tuple[int, ...] = ()
    goal_quaternions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)
        check_name(self.environment, field="environment")
        for field in ("state_names", "goal_names", "action_names"):
            check_labels(field, getattr(self, field))
        for field in ("action_low", "action_high"):
            limits = getattr(self, field)
            if len(limits) != self.action_dim or not all(abs(limit) <= _LARGEST_LIMIT for limit in limits):
                raise SpecError(
                    f"{field} must be {self.action_dim} finite numbers, one per action name, of at most "
                    f"{_LARGEST_LIMIT:g}, got {limits}"
                )
        if not all(low < high for low, high in zip(self.action_low, self.action_high, strict=True)):
            raise SpecError(f"action_low must be below action_high, got {self.action_low} and {self.action_high}")
        for field in ("control_period_s", "success_radius"):
            number = getattr(self, field)
            if not (math.isfinite(number) and number > 0):
                raise SpecError(f"{field} must be a positive number, got {number}")
        for field, known in (("energy", ENERGY_NAMES), ("activation", ACTIVATIONS), ("critic", CRITICS)):
            _check_known(field, getattr(self, field), known)
        self._check_sizes()
        self._check_actions()
        self._check_statistics()
        for field, dim in (("state_quaternions", self.state_dim), ("goal_quaternions", self.goal_dim)):
            check_quaternions(field, getattr(self, field), dim=dim)

    def _check_sizes(self) -> None:
        check_depth(self.actor_depth, field="actor_depth")
        for field in ("actor_width", "action_chunk"):
            if getattr(self, field) < 1:
                raise SpecError(f"{field} must be 1 or more, got {getattr(self, field)}")
        if self.has_critic:
            check_depth(self.critic_depth, field="critic_depth")
        for field in ("critic_depth", "critic_width", "representation_dim"):
            size = getattr(self, field)
            if self.has_critic and size < 1:
                raise SpecError(f"{field} must be 1 or more, got {size}")
            if not self.has_critic and size:
                raise SpecError(f"{field} must be 0 for a policy without a critic, got {size}")

    def _check_actions(self) -> None:
        """Check what is known of each action, and replace empty fields by the values that they stand for."""
        dim = self.action_dim
        for field, known, usual in (
            ("actuator_kind", ACTUATOR_KINDS, "other"),
            ("action_meaning", ACTION_MEANINGS, "absolute"),
        ):
            words = getattr(self, field) or (usual,) * dim
            if len(words) != dim:
                raise SpecError(f"{field} must be {dim} words, one per action name, got {words}")
            for word in words:
                _check_known(f"every entry of {field}", word, known)
            object.__setattr__(self, field, words)
        limits = zip(self.action_low, self.action_high, strict=True)
        rest = self.rest_action or tuple(to_action(0.0, low=low, high=high) for low, high in limits)
        if len(rest) != dim or not all(-1 <= number <= 1 for number in rest):
            raise SpecError(f"rest_action must be {dim} numbers from -1 to 1, one per action name, got {rest}")
        object.__setattr__(self, "rest_action", rest)
        changes = self.max_action_change
        if changes and (len(changes) != dim or not all(0 < number <= ACTION_RANGE for number in changes)):
            raise SpecError(
                f"max_action_change must be empty, or {dim} numbers above 0 and at most {ACTION_RANGE:g}, one per "
                f"action name, got {changes}"
            )

    def _check_statistics(self) -> None:
        for field in ("normalization_mean", "normalization_std", "seen_mean", "seen_std", "seen_low", "seen_high"):
            numbers = getattr(self, field)
            is_finite = all(abs(number) <= _LARGEST_STATISTIC for number in numbers)
            if numbers and not (len(numbers) == self.state_dim and is_finite):
                raise SpecError(
                    f"{field} must be empty or {self.state_dim} finite numbers of float32, one per state name, got "
                    f"{numbers!r:.80}"
                )
        for fields in (("normalization_mean", "normalization_std"), ("seen_mean", "seen_std", "seen_low", "seen_high")):
            if len({bool(getattr(self, field)) for field in fields}) > 1:
                raise SpecError(f"{', '.join(fields)} must be all empty, or none of them")
        if not all(number >= _SMALLEST_STD for number in self.normalization_std):
            raise SpecError(f"normalization_std must be {_SMALLEST_STD:g} or more everywhere")
        if not all(number >= 0 for number in self.seen_std):
            raise SpecError("seen_std must be 0 or more everywhere")
        if not all(low <= high for low, high in zip(self.seen_low, self.seen_high, strict=True)):
            raise SpecError("seen_low must not be above seen_high")
        if self.normalize_observations and not self.normalization_mean:
            raise SpecError("normalize_observations needs normalization_mean and normalization_std")

    @property
    def has_critic(self) -> bool:
        """Whether the policy can score actions."""
        return self.critic != "none"

    @property
    def state_dim(self) -> int:
        """Values in one state."""
        return len(self.state_names)

    @property
    def goal_dim(self) -> int:
        """Values in one goal."""
        return len(self.goal_names)

    @property
    def action_dim(self) -> int:
        """Values in one action."""
        return len(self.action_names)

    @property
    def chunk_dim(self) -> int:
        """Values in one chunk of actions: what one inference gives for a row."""
        return self.action_chunk * self.action_dim

    def same_interface(self, other: Self) -> bool:
        """Return whether a robot can use `other` in place of this policy, see `interface_difference`."""
        return not self.interface_difference(other)

    def interface_difference(self, other: Self) -> str:
        """Describe the first difference that a robot would notice between this policy and `other`; empty if none.

        Depth, width, energy and statistics may differ.
        """
        for field in _INTERFACE:
            ours, theirs = getattr(self, field), getattr(other, field)
            if ours != theirs:
                return f"{field} is {theirs!r:.200} instead of {ours!r:.200}"
        return ""

    def to_json(self) -> str:
        """Return the specification as a JSON object, keys in the order of the fields."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            SpecError: not JSON, a field missing, unknown or of the wrong type, or a value that is not valid.
        """
        try:
            stored = json.loads(text)
        except (ValueError, RecursionError) as error:  # a number too long or nesting too deep raises no JSONDecodeError
            raise SpecError(f"the specification is not JSON: {error}") from error
        if not isinstance(stored, dict):
            raise SpecError("the specification must be a JSON object")
        return cls.from_fields(stored)

    @classmethod
    def from_fields(cls, stored: dict[str, Any]) -> Self:
        """Build from a decoded JSON object; refuse missing, unknown and wrongly typed fields.

        Raises:
            SpecError: as `from_json`.
        """
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        optional = {field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING}
        if missing := sorted(fields.keys() - stored.keys() - optional):
            raise SpecError(f"the specification lacks {', '.join(missing)}")
        if unknown := sorted(stored.keys() - fields.keys()):
            raise SpecError(f"the specification has unknown fields: {', '.join(unknown)}")
        return cls(**{name: _decode(name, fields[name], value) for name, value in stored.items()})


# What a robot relies on, in the order in which differences are named.
_INTERFACE = (
    "state_dim",
    "goal_dim",
    "action_dim",
    "state_names",
    "goal_names",
    "action_names",
    "action_low",
    "action_high",
    "control_period_s",
    "success_radius",
    "actuator_kind",
    "rest_action",
    "action_meaning",
    "max_action_change",
    "action_chunk",
    "state_quaternions",
    "goal_quaternions",
    "has_critic",
)


def check_depth(depth: int, *, field: str = "depth") -> int:
    """Return `depth` if it is a positive multiple of 4, the number of layers in a residual block.

    Raises:
        SpecError: it is not; the message gives the nearest depths that are.
    """
    if depth < LAYERS_PER_BLOCK or depth % LAYERS_PER_BLOCK:
        below = depth // LAYERS_PER_BLOCK * LAYERS_PER_BLOCK
        nearest = f"{below} or {below + LAYERS_PER_BLOCK}" if below >= LAYERS_PER_BLOCK else str(LAYERS_PER_BLOCK)
        raise SpecError(f"{field} must be a positive multiple of {LAYERS_PER_BLOCK}, got {depth}; try {nearest}")
    return depth


def check_name(name: str, *, field: str = "name") -> str:
    """Return `name` if it can be part of URLs, metric labels, file names and logs.

    Raises:
        SpecError: it is not.
    """
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not (0 < len(name) <= 64 and plain.isascii() and plain.isalnum()):
        raise SpecError(
            f"{field} must be 1 to 64 letters, digits, - _ or ., with a letter or a digit, got {name[:80]!r}"
        )
    return name


def check_labels(field: str, labels: tuple[str, ...]) -> None:
    """Refuse `labels` that are empty, blank, not printable or repeated.

    Raises:
        SpecError: the message names `field` and the labels.
    """
    if not labels or not all(label.strip() and label.isprintable() for label in labels):
        raise SpecError(f"{field} must be one name or more, none of them blank, got {labels}")
    if len(set(labels)) != len(labels):
        raise SpecError(f"{field} must not repeat a name, got {labels}")


def check_quaternions(field: str, starts: tuple[int, ...], *, dim: int) -> None:
    """Refuse indices of quaternions that overlap, are not in ascending order, or do not fit into `dim` values.

    Raises:
        SpecError: the message names `field` and the indices.
    """
    ends = (0, *(start + QUATERNION_SIZE for start in starts))
    if any(start < end for start, end in zip((*starts, dim), ends, strict=True)):
        raise SpecError(
            f"{field} must be indices of blocks of {QUATERNION_SIZE} values that fit into {dim} values and do not "
            f"overlap, in ascending order, got {starts}"
        )


def to_action(value: float, *, low: float, high: float) -> float:
    """Return the action in [-1, 1] that stands for `value`, clipped to the limits `low` and `high` of its unit."""
    return max(min(2 * (min(max(value, low), high) - low) / (high - low) - 1, 1.0), -1.0)


def _check_known(field: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        raise SpecError(f"{field} must be one of {', '.join(known)}, got {word!r:.80}")


def _decode(name: str, kind: Any, stored: Any) -> Any:
    """Return a decoded JSON value as its field's type. A bool is not a number; an integer is a valid float."""
    if kind in _ITEMS and isinstance(stored, list):
        item = _ITEMS[kind]
        return tuple(_decode(f"every entry of {name}", item, value) for value in cast("list[Any]", stored))
    accepted: dict[Any, Any] = {str: str, int: int, float: int | float, bool: bool}
    if kind not in accepted or not isinstance(stored, accepted[kind]) or isinstance(stored, bool) != (kind is bool):
        raise SpecError(f"{name} must be {_JSON_TYPES.get(kind, 'a list')}, got {stored!r:.80}")
    try:
        return kind(stored)
    except OverflowError as error:  # JSON's integers are unbounded, unlike floats
        raise SpecError(f"{name} must be a number that fits into a float") from error
