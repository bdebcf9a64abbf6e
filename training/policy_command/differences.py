"""How much the actions of two policies differ on the same rows: figures, the worst rows and a histogram."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from policy.spec import PolicySpec
from training.policy_command.input_rows import InputRows

QUANTILES = (0.5, 0.9, 0.99)
EDGES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.2, 0.5, 1.0, 2.0)  # of the histogram; an action lies in [-1, 1]
_BAR = 40  # characters of the longest bar


@dataclasses.dataclass(frozen=True, eq=False)
class Difference:
    """What two policies do on the same rows."""

    rows: InputRows
    specs: tuple[PolicySpec, PolicySpec]
    first: np.ndarray  # [rows, action_chunk, action_dim] in [-1, 1]
    second: np.ndarray  # the same of the other policy

    @property
    def size(self) -> np.ndarray:
        """The absolute differences, [rows, action_chunk, action_dim]."""
        return np.abs(self.first.astype(np.float64) - self.second)

    @property
    def in_units(self) -> np.ndarray:
        """The absolute differences in the units of the robot, which each policy's own limits define."""
        first, second = (_in_units(*each) for each in zip((self.first, self.second), self.specs, strict=True))
        return np.abs(first - second)

    @property
    def largest(self) -> np.ndarray:
        """The largest difference of each row, [rows]."""
        return self.size.max(axis=(1, 2))

    def worst(self, count: int) -> np.ndarray:
        """Return the indices of the `count` rows with the largest differences, the worst first."""
        return np.argsort(-self.largest, kind="stable")[:count]

    def facts(self, *, worst: int) -> dict[str, Any]:
        """Return all figures as JSON values."""
        units = self.in_units
        return {
            "source": self.rows.source,
            "about": self.rows.about,
            "rows": len(self.first),
            **_figures(self.size),
            "actions": [
                {"name": name, **_figures(self.size[..., index]), "in_units": _figures(units[..., index])}
                for index, name in enumerate(self.specs[0].action_names)
            ],
            "histogram": {"edges": list(EDGES), "rows": _histogram(self.largest).tolist()},
            "worst": [self._row(int(index)) for index in self.worst(worst)],
        }

    def describe(self, *, worst: int) -> Iterator[str]:
        """Yield the figures as lines of text."""
        facts = self.facts(worst=worst)
        yield f"{facts['about']}: {facts['rows']:,} rows"
        yield f"  {'absolute difference':<30}{'mean':>10}{''.join(f'{_percent(q):>10}' for q in QUANTILES)}{'max':>10}"
        yield _line("all actions, in [-1, 1]", facts)
        for action in facts["actions"]:
            yield _line(action["name"], action["in_units"])
        yield "  rows by their largest difference in [-1, 1]"
        yield from _bars(facts["histogram"]["rows"])
        for row in facts["worst"]:
            if not row["difference"]:
                break  # the rows after it do not differ either
            yield f"  row {row['row']} differs by {row['difference']:.3g}"
            yield from (f"    {name:<7}{_numbers(row[name])}" for name in ("state", "goal", "first", "second"))

    def _row(self, index: int) -> dict[str, Any]:
        return {
            "row": index,
            "difference": float(self.largest[index]),
            "state": self.rows.state[index].tolist(),
            "goal": self.rows.goal[index].tolist(),
            "first": self.first[index].ravel().tolist(),
            "second": self.second[index].ravel().tolist(),
        }


def _in_units(action: np.ndarray, spec: PolicySpec) -> np.ndarray:
    """Return `action: [..., action_dim]` in the units of the robot."""
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    return low + (action.astype(np.float64) + 1) / 2 * (high - low)


def _figures(sizes: np.ndarray) -> dict[str, Any]:
    """Return the mean, the quantiles and the maximum of `sizes`."""
    quantiles = np.quantile(sizes, QUANTILES)
    return {
        "mean": float(sizes.mean()),
        "quantiles": {f"{q:g}": float(each) for q, each in zip(QUANTILES, quantiles, strict=True)},
        "max": float(sizes.max()),
    }


def _histogram(largest: np.ndarray) -> np.ndarray:
    """Return how many rows are in each interval of EDGES; the last contains both its ends."""
    return np.histogram(np.minimum(largest, EDGES[-1]), bins=np.array(EDGES))[0]


def _bars(counts: list[int]) -> Iterator[str]:
    for low, high, count in zip(EDGES[:-1], EDGES[1:], counts, strict=True):
        bar = "#" * -(-count * _BAR // max(counts))  # a row is at least one character
        yield f"    {low:>6g} to {high:<6g} {count:>8,}  {bar}".rstrip()


def _line(label: str, figures: dict[str, Any]) -> str:
    numbers = (figures["mean"], *figures["quantiles"].values(), figures["max"])
    return f"  {label:<30}{''.join(f'{number:>10.3g}' for number in numbers)}"


def _percent(quantile: float) -> str:
    return f"{quantile:.0%}"


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
