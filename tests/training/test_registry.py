"""Environments registered from outside: their names, their modules, and the look that is taken at them."""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from policy.spec import SpecError
from tests.training.cart import Cart
from tests.training.test_mjcf_env import ARM, Box, MjcfEnv
from training.config import TrainConfig
from training.envs import registry
from training.envs.core.errors import EnvError, UnknownNameError
from training.envs.core.goal_env import GoalEnv
from training.run import main

FACTS = {
    "goal_sites": "fingertip",
    "goal_axes": "xy",
    "goals": Box(low=(0.2, -0.35), high=(0.4, 0.35)),
    "success_radius": 0.05,
    "control_period_s": 0.04,
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch):
    """What a test registers and imports is gone after it."""
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "DEFAULT", registry.built_in())
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("own_"):
            del sys.modules[name]


def arm(name: str, *, impl: str, cls: type[MjcfEnv] = MjcfEnv, **changes: object) -> MjcfEnv:
    return cls(name, ARM, impl=impl, **(FACTS | {"episode_length": 100} | changes))


def test_a_registered_environment_is_found_and_made() -> None:
    registry.register("two_link", arm, episode_length=100)
    assert registry.find("two_link").episode_length == 100
    assert "two_link" in registry.names()
    assert registry.make("two_link").spec.name == "two_link"


@pytest.mark.parametrize("taken", ["point_u_maze", "ant", "ant_u_maze_gen_1f2f"])
def test_a_name_that_is_taken_is_refused(taken: str) -> None:
    with pytest.raises(EnvError, match=f"an environment named '{taken}' exists already"):
        registry.register(taken, arm, episode_length=100)


@pytest.mark.parametrize("odd", ["", "two link", "a/b", "my:arm", "ä"])
def test_odd_names_are_refused_as_those_of_policies_are(odd: str) -> None:
    with pytest.raises(SpecError, match="environment must be 1 to 64 letters, digits"):
        registry.register(odd, arm, episode_length=100)


@pytest.mark.parametrize("build", [None, 3, "arm", Box(low=(0,), high=(1,)).low])
def test_a_build_argument_that_is_not_callable_is_refused_at_registration(build: object) -> None:
    with pytest.raises(
        EnvError, match=r"odd: build must be a function of \(name, impl=...\) that returns a GoalEnv, got "
    ):
        registry.register("odd", build, episode_length=100)


@pytest.mark.parametrize("length", [0, -1, "100", None, 1.5, True])
def test_an_invalid_episode_length_is_refused_at_registration(length: object) -> None:
    with pytest.raises(EnvError, match=f"odd: episode_length must be an integer above 0, got {length!r}; try 100"):
        registry.register("odd", arm, episode_length=length)


def forgets_impl(name: str) -> MjcfEnv:
    return arm(name, impl="jax")


def stumbles(name: str, *, impl: str) -> MjcfEnv:
    raise KeyError("leg")


def leaves(name: str, *, impl: str) -> MjcfEnv:
    sys.exit("bye")


def gives_a_name(name: str, *, impl: str) -> str:
    return name


class Specless(Cart):
    """Forgets to say anything of itself."""

    def __init__(self, name: str, *, impl: str) -> None:
        self.name = name


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (forgets_impl, r"forgets_impl\('odd', impl='jax'\) failed: TypeError.*: .*unexpected keyword argument 'impl'"),
        (stumbles, r"stumbles\('odd', impl='jax'\) failed: KeyError at .*/test_registry.py:\d+: 'leg'"),
        (functools.partial(stumbles), r"stumbles\('odd', impl='jax'\) failed: KeyError"),
        (leaves, r"leaves\('odd', impl='jax'\) failed: SystemExit at .*/test_registry.py:\d+: bye"),
        (
            gives_a_name,
            r"gives_a_name\('odd', impl='jax'\) returned 'odd'; it must return a GoalEnv, such as an MjcfEnv",
        ),
        (
            Specless,
            r"Specless\('odd', impl='jax'\) returned an environment without a spec; pass an EnvSpec to GoalEnv",
        ),
    ],
)
def test_what_a_builder_does_wrong_is_one_line_that_names_it_and_its_module(build: object, message: str) -> None:
    registry.register("odd", build, episode_length=100)
    with pytest.raises(EnvError, match=rf"^odd: {__name__}\.{message}") as raised:
        registry.make("odd")
    assert "\n" not in str(raised.value)


class Lost(MjcfEnv):
    """Starts with an elbow that is nowhere."""

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        qpos, qvel = super().sample_start(key)
        return qpos.at[1].set(jnp.nan), qvel


class Dreamer(MjcfEnv):
    """Wishes itself to infinity."""

    def sample_goal(self, key: jax.Array) -> jax.Array:
        return jnp.array([0.3, jnp.inf])


class Talker(MjcfEnv):
    """Senses more than it says."""

    def sense(self, data) -> jax.Array:
        return jnp.append(super().sense(data), 1.0)


class Forgetful(MjcfEnv):
    """Has no goal in mind."""

    def sample_goal(self, key: jax.Array) -> jax.Array:
        raise LookupError("what was it\nagain?")


class Gambler(MjcfEnv):
    """Starts with an elbow that no key knows of."""

    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        qpos, qvel = super().sample_start(key)
        return qpos.at[1].set(np.random.default_rng().uniform()), qvel


def keyless(key: jax.Array) -> jax.Array:
    """A goal that numpy draws."""
    return jnp.asarray(np.random.default_rng().uniform(0.2, 0.4, 2), jnp.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cls": Gambler},
            f"{ARM}: odd: the start's positions differ between two draws with the same key; use jax.random",
        ),
        ({"goals": keyless}, f"{ARM}: odd: the goal differs between two draws with the same key; "),
        ({"cls": Forgetful}, f"{ARM}: odd: a reset failed: LookupError at .*/test_registry.py:\\d+: what was it again"),
        ({"cls": Lost}, f"{ARM}: odd: the state at a reset is not finite: elbow \\[rad\\] is nan, fingertip x"),
        ({"cls": Dreamer}, f"{ARM}: odd: the goal at a reset is not finite: fingertip y \\[m\\] is inf;"),
        ({"cls": Talker}, f"{ARM}: odd: a state has shape \\[7\\], but state_names has length 6"),
        ({"episode_length": 90}, "odd: episode_length is 100 where it is registered and 90 in its spec"),
    ],
)
def test_make_checks_the_spec_and_one_reset(changes: dict[str, object], message: str) -> None:
    registry.register("odd", lambda name, impl: arm(name, impl=impl, **changes), episode_length=100)
    with pytest.raises(EnvError, match=message):
        registry.make("odd")


class Limp(Cart):
    """Can push with nothing at all."""

    @property
    def action_low(self) -> tuple[float, ...]:
        return (0.0,)

    @property
    def action_high(self) -> tuple[float, ...]:
        return (0.0,)


class Headless(Cart):
    """Knows of one limit too few."""

    @property
    def action_high(self) -> tuple[float, ...]:
        return ()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Limp, "odd: 'force \\[N\\]' has the range 0 to 0; give its actuator a ctrlrange"),
        (Headless, "odd: action_names, action_low and action_high must have the same length, got 1, 1 and 0"),
    ],
)
def test_actions_without_two_ends_are_refused(build: object, message: str) -> None:
    registry.register("odd", build, episode_length=6)
    with pytest.raises(EnvError, match=message):
        registry.make("odd")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"substeps": 0}, "odd: substeps must be an integer above 0, got 0; try 4"),
        ({"impl": "C"}, "unknown physics implementation 'C'; known, nearest first: jax, warp"),
    ],
)
def test_what_an_environment_hands_on_is_looked_at(change: dict[str, object], message: str) -> None:
    cart = Cart("odd")
    with pytest.raises(ValueError, match=message):
        GoalEnv.__init__(cart, cart.spec, cart.model, **({"substeps": 1} | change))


def test_an_environment_that_calls_itself_otherwise_is_refused() -> None:
    registry.register("odd", lambda _, impl: arm("even", impl=impl), episode_length=100)
    with pytest.raises(EnvError, match="odd: name is 'odd' where it is registered and 'even' in its spec"):
        registry.make("odd")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def module(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)


def two_environments() -> registry.EnvRegistry:
    """A registry of two built-in environments: each that is listed is built."""
    entries = registry.built_in().entries
    return registry.EnvRegistry({name: entries[name] for name in ("point_u_maze", "ant")}, variants={})


REGISTERS = """
from tests.training.test_registry import arm
from training.envs import registry
registry.register("own_arm", arm, episode_length=100)
"""


def test_a_name_with_a_module_imports_it_from_the_current_folder(folder: Path) -> None:
    module(folder, "own_robot", REGISTERS)
    with pytest.raises(UnknownNameError, match="unknown environment 'own_arm'; .*for one of your own use MODULE:NAME"):
        registry.find("own_arm")
    config = TrainConfig(env="own_robot:own_arm", out=Path("run"))
    assert config.published_name == "own_arm"
    env = registry.make("own_robot:own_arm")
    assert env.spec.name == "own_arm"
    assert (config.policy_spec(env).name, config.policy_spec(env).environment) == ("own_arm", "own_arm")
    with pytest.raises(
        UnknownNameError,
        match="unknown environment 'own_am'; known, nearest first: own_arm, .*; own_robot does not register this name$",
    ):
        registry.find("own_robot:own_am")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "own_gone",
            None,
            "there is no module 'own_gone' in .* or on PYTHONPATH; for a file my_robot.py, use my_robot:",
        ),
        ("own_a.b", "", "there is no module 'own_a.b' in "),
        (
            "own_b",
            "import nothing_of_that_name",
            "own_b cannot be imported: ModuleNotFoundError at .*own_b.py:1: No mod",
        ),
        ("own_c", "\n\n1 / 0", "own_c cannot be imported: ZeroDivisionError at .*own_c.py:3: division by zero"),
        ("own_d", "\n\ndef", "own_d cannot be imported: SyntaxError at .*/own_d.py:3: invalid syntax$"),
        ("own_f", "raise OSError('no\\n  arm')", "own_f cannot be imported: OSError at .*own_f.py:1: no arm$"),
        ("own_g", "import own_d2", "own_g cannot be imported: SyntaxError at .*/own_d2.py:1: invalid syntax$"),
        (".own_h", "", "'.own_h' is not a module name; for a file my_robot.py, use my_robot:NAME in its folder"),
        ("own_e", REGISTERS.replace('"own_arm"', '"ant"'), "an environment named 'ant' exists already"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    name: str,
    text: str | None,
    message: str,
) -> None:
    module(folder, "own_d2", "def")
    if text is not None:
        module(folder, name.strip(".").partition(".")[0], text)
    monkeypatch.setattr(registry, "DEFAULT", two_environments())
    with pytest.raises(EnvError, match=message):
        registry.find(f"{name}:arm")
    assert main(["--env", f"{name}:arm", "--out", "run"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert main(["--list-envs", "--env", f"{name}:"]) == 2
    listed, refused = capsys.readouterr()
    assert "point_u_maze" in listed
    assert refused == told


def test_one_that_cannot_be_built_is_named_and_the_others_are_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "DEFAULT", two_environments())
    registry.register("bad", functools.partial(arm, joints=0), episode_length=100)
    registry.register("cart", Cart, episode_length=6)
    assert main(["--list-envs"]) == 2
    listed, refused = capsys.readouterr()
    assert [line.split()[1] for line in listed.splitlines() if "│" in line] == ["point_u_maze", "ant", "cart"]
    assert (
        refused
        == f"error: bad is not listed: {ARM}: the name of a joint must be a string, got 0; known: shoulder, elbow\n"
    )
