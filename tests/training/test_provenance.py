"""What a run and its policies say of where they come from."""

import datetime
import hashlib
import json
import platform
import shutil
import sys
import types
from importlib import metadata
from pathlib import Path

import jax
import pytest

from policy import bundle
from tests.training.lines import Lines
from training import trainer
from training.envs.custom.mjcf_env import Box, MjcfEnv
from training.run_dir import config_file, provenance

ROBOT = """
<mujoco>
  <include file="parts/motors.xml"/>
  <compiler meshdir="shapes"/>
  <asset><mesh name="tip" file="tip.obj"/></asset>
  <worldbody>
    <body>
      <joint name="slide" type="slide" axis="1 0 0"/>
      <geom type="mesh" mesh="tip" mass="1"/>
      <site name="tip"/>
    </body>
  </worldbody>
</mujoco>
"""
MOTORS = '<mujoco><actuator><motor joint="slide" ctrlrange="-1 1"/></actuator></mujoco>'
TIP = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


def test_the_files_of_a_robot_are_its_model_all_that_it_uses_and_its_module(tmp_path: Path, monkeypatch) -> None:
    files = {"robot.xml": ROBOT, "parts/motors.xml": MOTORS, "shapes/tip.obj": TIP, "slider.py": "# registers it\n"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "other.xml").write_text(ROBOT)
    module = types.ModuleType("slider")
    module.__file__ = str(tmp_path / "slider.py")
    monkeypatch.setitem(sys.modules, "slider", module)
    goals = Box(low=(0.0,), high=(1.0,))
    settings = {"success_radius": 0.1, "control_period_s": 0.02, "episode_length": 10}
    env = MjcfEnv("slider", tmp_path / "robot.xml", goal_sites="tip", goal_axes="x", goals=goals, **settings)
    expected = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    assert provenance.robot_files("slider:slider", env) == expected


def test_a_robot_of_ours_has_no_files(u_maze) -> None:
    assert provenance.robot_files("point_u_maze", u_maze) == {}


@pytest.mark.usefixtures("without_physics")
def test_a_run_and_its_policies_carry_the_same_provenance(finished: Path) -> None:
    stored = config_file.provenance(finished)
    assert stored["versions"]["jax"] == metadata.version("jax")
    assert stored["versions"]["python"] == platform.python_version()
    assert {"kilolayer-stack", "jaxlib", "flax", "optax", "mujoco"} <= stored["versions"].keys()
    assert stored["device"].startswith("CPU, ") or "(" in stored["device"]
    assert Path(sys.argv[0]).name in stored["command"]
    assert stored["matmul_precision"] is None
    assert stored["earlier"] == []
    assert json.loads((finished / "config.json").read_text())["format"] == config_file.FORMAT
    published = dict(bundle.read(finished / "policies" / "240").provenance)
    began, date = (datetime.datetime.fromisoformat(each["date"]) for each in (stored, published))
    assert began <= date
    assert began.tzinfo is not None
    del published["config"], published["metrics"]
    assert published | {"date": stored["date"]} == stored
    if stored["dirty"]:
        diff = (finished / stored["diff"]).read_bytes()
        assert stored["diff"] == f"diffs/{hashlib.sha256(diff).hexdigest()[:12]}.diff"
    else:
        assert not (finished / "diffs").exists()


@pytest.mark.usefixtures("without_physics")
def test_a_resume_under_other_versions_says_so_and_keeps_them(finished: Path, tiny, tmp_path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    stored = json.loads((run / "config.json").read_text())
    jax, device = stored["provenance"]["versions"]["jax"], stored["provenance"]["device"]
    stored["provenance"]["versions"]["jax"] = "0.1.2"
    stored["provenance"]["device"] = "a TPU"
    stored["provenance"]["date"] = "2001-02-03T04:05:06+00:00"
    (run / "config.json").write_text(json.dumps(stored))
    told = Lines()
    trainer.train(tiny(run, resume=True, total_env_steps=280), progress=told)
    assert (
        "resumed under other conditions, so its end may differ in the last digits or more: "
        f"device was a TPU and is {device}; jax was 0.1.2 and is {jax}"
    ) in told.lines
    (earlier,) = bundle.read(run / "policies" / "280").provenance["earlier"]
    assert (earlier["versions"]["jax"], earlier["date"]) == ("0.1.2", "2001-02-03T04:05:06+00:00")
    assert config_file.provenance(run)["versions"]["jax"] == jax


def test_a_new_run_with_auto_is_not_taken_for_one_of_an_earlier_release(u_maze, tiny, tmp_path: Path) -> None:
    origin = provenance.collect(tiny(tmp_path / "run", resume="auto"), u_maze)
    assert origin.lines == [provenance.describe(origin.facts)]
    assert origin.facts["earlier"] == []


def test_what_does_not_differ_is_not_mentioned() -> None:
    one = {"versions": {"jax": "1"}, "device": "CPU", "commit": "a" * 40, "date": "yesterday", "command": "x"}
    assert provenance.changes(one, one | {"date": "today", "command": "y"}) == ""
    other = one | {"commit": "b" * 40, "robot_files": {"robot.xml": "c" * 64}}
    assert provenance.changes(one, other).endswith(
        f"commit was {'a' * 12} and is {'b' * 12}; robot.xml was absent and is {'c' * 12}"
    )
    assert "did not record its versions" in provenance.changes({}, one)


def test_another_precision_of_matrix_products_is_mentioned() -> None:
    assert provenance.matmul_precision() is None
    with jax.default_matmul_precision("highest"):
        chosen = provenance.matmul_precision()
    earlier = {"versions": {"jax": "1"}}  # of a release that did not record it
    assert provenance.changes(earlier, earlier | {"matmul_precision": None}) == ""
    changed = provenance.changes(earlier | {"matmul_precision": None}, earlier | {"matmul_precision": chosen})
    assert changed.endswith("more: matmul_precision was absent and is highest")


def test_the_line_about_the_code() -> None:
    facts = {"versions": {"kilolayer-stack": "0.1.0", "jax": "1", "python": "3"}, "commit": "a" * 40}
    clean = f"code: kilolayer-stack 0.1.0, commit {'a' * 12}; jax 1, python 3"
    assert provenance.describe(facts | {"dirty": False, "diff": None}) == clean
    dirty = provenance.describe(facts | {"dirty": True, "diff": "diffs/b.diff"})
    assert dirty == clean.replace("; jax", " with changes that are not committed (diffs/b.diff); jax")
    assert (
        provenance.describe(facts | {"commit": None, "dirty": None}) == "code: kilolayer-stack 0.1.0; jax 1, python 3"
    )
