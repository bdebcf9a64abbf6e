"""`--init-from`: a run that starts with the networks of a published policy."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from policy import bundle
from training import evaluation, trainer, warm_start
from training.config import ConfigError
from training.envs import registry
from training.progress_display import NoProgress

pytestmark = pytest.mark.usefixtures("without_physics")


class Recorder(NoProgress):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def falling(without_physics, tiny, tmp_path_factory) -> Path:
    """The folder of a run whose first evaluation, after 120 steps, was its best."""
    out, stays = tmp_path_factory.mktemp("runs") / "falling", iter((0.75, 0.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "summarize", lambda _: {"eval/stay": next(stays)})
        patch.setattr(trainer.references, "measure_once", lambda *_, **__: 0.0)
        trainer.train(tiny(out), progress=None)
    return out


@pytest.mark.parametrize(("folder", "version"), [("policies/240", 240), ("policies", 120), ("", 120)])
def test_a_run_starts_with_the_networks_of_a_policy_and_nothing_else_of_it(
    falling: Path, tiny, tmp_path, folder: str, version: int
) -> None:
    """Of a folder with versions it takes the best one, and it says which policy it takes."""
    config = tiny(tmp_path / "run", init_from=falling / folder, seed=5)
    env = registry.make(config.env)
    progress = Recorder()
    state = trainer._first_state(config, env, progress)
    path = falling / "policies" / str(version)
    assert progress.lines == [
        f"starting from the policy point_u_maze, version {version}, in {path}: {version} environment steps, eval/stay "
        f"{ {120: 0.75, 240: 0.5}[version]:.2f}"
    ]
    policy = bundle.read(path)
    for ours, theirs in zip(jax.tree.leaves(state.train_state.params), jax.tree.leaves(policy.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(state.train_state.optimizer))
    assert float(state.train_state.log_temperature) == 0
    assert int(state.replay.held) == int(state.iteration) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actor_width": 32}, "does not fit this run: its actor_width is 16, and this run has 32"),
        ({"critic_depth": 8}, "its critic_depth is 4, and this run has 8"),
        ({"representation_dim": 4}, "its representation_dim is 8, and this run has 4"),
        ({"normalize_observations": True}, "its normalize_observations is False, and this run has True"),
        ({"energy": "dot"}, "its energy is 'l2', and this run has 'dot'"),
        (
            {"init_from": Path("nothing")},
            r"^init_from cannot be used: nothing is not a usable policy \(missing\): there is no published version of "
            "that name; use the folder of another version, or a folder with versions$",
        ),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_by_name(finished: Path, tiny, tmp_path, changes, message: str) -> None:
    config = tiny(tmp_path / "run", **{"init_from": finished / "policies"} | changes)
    with pytest.raises(ConfigError, match=message):
        trainer.train(config)
    assert not (tmp_path / "run" / "config.json").exists()


def test_names_that_differ_are_refused_with_their_number(finished: Path, tiny, tmp_path) -> None:
    config = tiny(tmp_path / "run", init_from=finished / "policies")
    env = registry.make("point_u_maze")
    other = type(env)()
    other.spec = other.spec.__class__(**{**vars(other.spec), "action_names": ("thrust",)})
    with pytest.raises(ConfigError, match=r"its action_names is 1 values \('push',\), and this run has 1 values"):
        warm_start.with_params_from(config, other, trainer.initial_state(config, other), progress=NoProgress())


@pytest.mark.parametrize(("field", "word"), [("actuator_kind", "velocity"), ("action_meaning", "increment")])
def test_actions_of_another_meaning_are_refused(finished: Path, tiny, tmp_path, field: str, word: str) -> None:
    config = tiny(tmp_path / "run", init_from=finished / "policies")
    other = type(registry.make("point_u_maze"))()
    other.spec = other.spec.__class__(**{**vars(other.spec), field: (word,)})
    with pytest.raises(ConfigError, match=f"its {field} is .*, and this run has .*{word}"):
        warm_start.with_params_from(config, other, trainer.initial_state(config, other), progress=NoProgress())


def test_a_policy_that_normalizes_keeps_its_statistics(tiny, tmp_path) -> None:
    trainer.train(tiny(tmp_path / "first", normalize_observations=True, total_env_steps=120, num_evals=1))
    again = {"init_from": tmp_path / "first", "normalize_observations": True, "seed": 5}
    trainer.train(tiny(tmp_path / "second", **again, total_env_steps=120, num_evals=1))
    first, second = (bundle.read(tmp_path / name / "policies" / "120") for name in ("first", "second"))
    assert first.spec.normalize_observations
    for ours, theirs in zip(first.params.normalization, second.params.normalization, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert first.spec.seen_mean != second.spec.seen_mean


def test_a_resumed_run_does_not_start_from_the_policy_again(finished: Path, tiny, tmp_path) -> None:
    shutil.copytree(finished, tmp_path / "first")
    out, first = tmp_path / "run", tmp_path / "first" / "policies"
    trainer.train(tiny(out, init_from=first, total_env_steps=120, num_evals=1))
    shutil.rmtree(first)
    trainer.train(tiny(out, init_from=first, resume=True))
    assert bundle.versions(out / "policies") == [120, 240]
