"""PolicySpec: the sizes, names, units and limits that are stored with a policy."""

import dataclasses
import json
import math
from typing import Any, Self, cast

from policy.energy import ENERGIES

LAYERS_PER_BLOCK = 4
ACTIVATIONS = ("swish", "relu")
_JSON_TYPES: dict[Any, str] = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


class SpecError(ValueError):
    """A specification that is not valid; the message names the field and what is allowed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """The inputs and outputs of a policy, complete and checked when it is constructed.

    Names include their unit in brackets (`"x [m]"`). A policy gives actions in [-1, 1]; `action_low` and `action_high`
    are what -1 and 1 stand for, in the unit of `action_names`. The fields with a default are the paper's choices, which
    its ablations change (arXiv 2503.14858, section 4).

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

    def __post_init__(self) -> None:
        check_name(self.name)
        check_name(self.environment, field="environment")
        for field in ("state_names", "goal_names", "action_names"):
            check_labels(field, getattr(self, field))
        for field in ("action_low", "action_high"):
            limits = getattr(self, field)
            if len(limits) != self.action_dim or not all(math.isfinite(limit) for limit in limits):
                raise SpecError(f"{field} must be {self.action_dim} finite numbers, one per action name, got {limits}")
        if not all(low < high for low, high in zip(self.action_low, self.action_high, strict=True)):
            raise SpecError(f"action_low must be below action_high, got {self.action_low} and {self.action_high}")
        for field in ("control_period_s", "success_radius"):
            number = getattr(self, field)
            if not (math.isfinite(number) and number > 0):
                raise SpecError(f"{field} must be a positive number, got {number}")
        for field in ("actor_depth", "critic_depth"):
            check_depth(getattr(self, field), field=field)
        for field in ("actor_width", "critic_width", "representation_dim"):
            if getattr(self, field) < 1:
                raise SpecError(f"{field} must be 1 or more, got {getattr(self, field)}")
        for field, known in (("energy", tuple(ENERGIES)), ("activation", ACTIVATIONS)):
            if getattr(self, field) not in known:
                raise SpecError(f"{field} must be one of {', '.join(known)}, got {getattr(self, field)!r:.80}")

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


def _decode(name: str, kind: Any, stored: Any) -> Any:
    """Return a decoded JSON value as its field's type. A bool is not a number; an integer is a valid float."""
    if kind in (tuple[str, ...], tuple[float, ...]) and isinstance(stored, list):
        item = str if kind == tuple[str, ...] else float
        return tuple(_decode(f"every entry of {name}", item, value) for value in cast("list[Any]", stored))
    accepted: dict[Any, Any] = {str: str, int: int, float: int | float, bool: bool}
    if kind not in accepted or not isinstance(stored, accepted[kind]) or isinstance(stored, bool) != (kind is bool):
        raise SpecError(f"{name} must be {_JSON_TYPES.get(kind, 'a list')}, got {stored!r:.80}")
    try:
        return kind(stored)
    except OverflowError as error:  # JSON's integers are unbounded, unlike floats
        raise SpecError(f"{name} must be a number that fits into a float") from error
