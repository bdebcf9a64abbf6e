"""Facts about a policy of another project: each one that is missing, unknown or wrong is named with what is allowed."""

import re
from pathlib import Path
from typing import Any

import pytest

from policy.exchange import import_facts, import_facts_template
from policy.exchange.import_facts import FactsError
from tests.policy.exchange.foreign_models import NETWORK, write_facts

SCALING_CRL, JAXGCRL = NETWORK["scaling-crl"], NETWORK["jaxgcrl"]


def refusal(path: Path) -> str:
    with pytest.raises(FactsError) as error:
        import_facts.read(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(str(path)).removeprefix(": ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "[policy] the specification lacks name"),
        ({"success_radius": "near"}, "[policy] success_radius must be a number, got 'near'"),
        ({"control_period_s": 0.0}, "[policy] control_period_s must be a positive number, got 0.0"),
        ({"action_low": [-1.0]}, "[policy] action_low must be 3 finite numbers, one per action name, of at most 1e+38"),
        ({"goal_names": 0}, "[policy] goal_names must be a list of names, or their number, 1 or more, got 0"),
        ({"state_quaternions": [3]}, "unknown fact 'state_quaternions' in [policy]; allowed are name, environment, "),
        ({"actor_depth": 8}, "unknown fact 'actor_depth' in [policy]; allowed are name, environment, "),
    ],
)
def test_a_wrong_fact_about_the_policy_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert refusal(write_facts(tmp_path / "facts.toml", network=SCALING_CRL, **changes)).startswith(message)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (SCALING_CRL | {"layout": "brax"}, "layout must be 'scaling-crl' or 'jaxgcrl', got 'brax'"),
        (SCALING_CRL | {"layout": None}, "layout must be 'scaling-crl' or 'jaxgcrl', got ''"),
        (SCALING_CRL | {"use_relu": None}, "lacks use_relu, which the layout scaling-crl needs"),
        (SCALING_CRL | {"use_relu": 0}, "use_relu must be true or false, got 0"),
        (SCALING_CRL | {"actor_depth": True}, "actor_depth must be an integer, got True"),
        (
            SCALING_CRL | {"actor_depth": 6},
            "actor_depth must be a positive multiple of 4, got 6; scaling-crl rounds it down, so write the depth that "
            "was trained, 4",
        ),
        (
            SCALING_CRL | {"critic_depth": 2},
            "critic_depth must be a positive multiple of 4, got 2: a policy here has one residual block or more",
        ),
        (JAXGCRL | {"skip_connections": None}, "lacks skip_connections, which the layout jaxgcrl needs"),
        (JAXGCRL | {"energy_fn": None}, "lacks energy_fn, which the layout jaxgcrl needs"),
        (JAXGCRL | {"energy_fn": "l1"}, "energy_fn must be one of norm, l2, dot, got 'l1'"),
        (JAXGCRL | {"energy_fn": "cosine"}, "energy_fn cosine cannot be imported: JaxGCRL divides by the norm of "),
        (JAXGCRL | {"n_hidden": 0}, "n_hidden must be 1 or more, got 0"),
        (JAXGCRL | {"skip_connections": -1}, "skip_connections must be 0 or more, got -1"),
    ],
)
def test_a_wrong_fact_about_the_networks_is_named(tmp_path: Path, network: dict[str, Any], message: str) -> None:
    assert refusal(write_facts(tmp_path / "facts.toml", network=network)).startswith(f"[network] {message}")


def test_a_fact_of_the_other_layout_is_named(tmp_path: Path) -> None:
    assert refusal(write_facts(tmp_path / "facts.toml", network=SCALING_CRL | {"n_hidden": 4})) == (
        "unknown fact 'n_hidden' in [network]; for the layout scaling-crl, allowed are layout, use_relu, critic, "
        "actor_depth, critic_depth"
    )


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        ({"goal_low": [0.0, 0.0]}, "[probes] goal_low and goal_high belong together, got goal_low alone"),
        ({"goal_low": [0.0], "goal_high": [1.0, 1.0]}, "[probes] goal_low must be 2 finite numbers of at most 1e+38"),
        ({"goal_low": [0.0, 2.0], "goal_high": [1.0, 1.0]}, "[probes] goal_low must not be above goal_high"),
        ({"goal_low": [0.0, float("nan")], "goal_high": [1.0, 1.0]}, "[probes] goal_low must be 2 finite numbers"),
        ({"goal_low": [0.0, True], "goal_high": [1.0, 1.0]}, "[probes] goal_low must be 2 finite numbers"),
        ({"goal": [0.0]}, "unknown fact 'goal' in [probes]; allowed are state_low, state_high, goal_low, goal_high"),
    ],
)
def test_a_wrong_range_is_named(tmp_path: Path, probes: dict[str, Any], message: str) -> None:
    assert refusal(write_facts(tmp_path / "facts.toml", network=SCALING_CRL, probes=probes)).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[policy\n", " is not TOML: "),
        ("policy = 3\n", "policy must be a table that starts with the line [policy], got 3"),
        ('name = "ant"\n', "unknown table or fact 'name'; the tables are [policy], [network] and [probes]"),
    ],
)
def test_a_file_without_the_three_tables_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "facts.toml"
    path.write_text(text)
    assert refusal(path).startswith(message)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "facts.toml"
    path.write_bytes(b"\xff")
    assert refusal(path).startswith(" is not TOML: ")


def test_a_critic_that_is_not_imported_needs_no_facts(tmp_path: Path) -> None:
    for network in (
        SCALING_CRL | {"critic_depth": None},
        JAXGCRL | {"energy_fn": None},
        JAXGCRL | {"energy_fn": "cosine"},
    ):
        known = import_facts.read(write_facts(tmp_path / "facts.toml", network=network | {"critic": False}))
        assert (known.network.critic, known.network.critic_hidden) == (False, 0)


def filled(text: str, values: dict[str, str]) -> str:
    """The template with values in place of those that it has."""
    for name, value in values.items():
        text, count = re.subn(rf"^(?:# )?{name} = [^#\n]*", f"{name} = {value} ", text, flags=re.MULTILINE)
        assert count == 1, name
    return text


FILLED = {
    "name": '"ant"',
    "environment": '"ant"',
    "state_names": "5",
    "goal_names": "2",
    "action_names": "3",
    "action_low": "[-1, -1, -1]",
    "action_high": "[1, 1, 1]",
    "control_period_s": "0.05",
    "success_radius": "0.5",
    "actuator_kind": '["torque", "torque", "other"]',
    "rest_action": "[0, 0, 0]",
    "action_meaning": '["absolute", "absolute", "increment"]',
    "max_action_change": "[2, 2, 0.5]",
    "state_low": "[0, 0, 0, 0, 0]",
    "state_high": "[1, 1, 1, 1, 1]",
    "goal_low": "[0, 0]",
    "goal_high": "[1, 1]",
}


@pytest.mark.parametrize("network", [SCALING_CRL, JAXGCRL], ids=["scaling-crl", "jaxgcrl"])
def test_the_template_has_every_fact_and_can_be_filled(tmp_path: Path, network: dict[str, Any]) -> None:
    path = tmp_path / "facts.toml"
    import_facts_template.write(path)
    settings = {name: f'"{value}"' if isinstance(value, str) else str(value).lower() for name, value in network.items()}
    path.write_text(filled(path.read_text(), FILLED | settings))
    known = import_facts.read(path)
    assert {name: known.stated["network"][name] for name in network} == network
    assert known.stated["network"]["critic"] is True
    assert known.ranges == {
        "state_low": (0.0,) * 5, "state_high": (1.0,) * 5, "goal_low": (0.0,) * 2, "goal_high": (1.0,) * 2,
    }  # fmt: skip
    sizes = {"actor_depth": 4, "actor_width": 1, "critic_depth": 0, "critic_width": 0, "representation_dim": 0}
    spec = known.spec(**sizes, critic="none")
    assert spec.action_names == ("action 0", "action 1", "action 2")
    assert spec.max_action_change == (2.0, 2.0, 0.5)


def test_an_unfilled_template_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "facts.toml"
    import_facts_template.write(path)
    assert refusal(path).startswith("[network] layout must be 'scaling-crl' or 'jaxgcrl', got ''")


def test_a_template_does_not_replace_a_file(tmp_path: Path) -> None:
    path = tmp_path / "facts.toml"
    path.write_text("filled")
    with pytest.raises(FileExistsError):
        import_facts_template.write(path)
    assert path.read_text() == "filled"
