"""The import arrows of the house, read from the source of every module; see CONTRIBUTING.md."""

import ast
import dataclasses
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
OURS = frozenset({"benchmarks", "clients", "kilolayer", "policy", "scripts", "serving", "tests", "training"})
RUN_AS_SCRIPTS = ("training", "serving", "clients/sim", "scripts", "benchmarks", "docs")  # each comes first on sys.path
PICKLES = frozenset({"_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"})


@dataclasses.dataclass(frozen=True)
class Room:
    """A folder, its name in imports, and what of ours its modules may import."""

    folder: str
    package: str
    may_import: tuple[str, ...]


ROOMS = {
    room.folder: room
    for room in (
        Room("policy", "policy", ("policy",)),
        Room("training", "training", ("training", "policy")),
        Room("serving", "serving", ("serving", "policy", "kilolayer.v1", "kilolayer._internal")),
        Room("clients/python/kilolayer", "kilolayer", ("kilolayer",)),
        Room("clients/sim", "clients.sim", ("clients.sim", "kilolayer", "training.envs")),
        Room("scripts", "scripts", ()),
    )
}


def modules(folder: str) -> list[Path]:
    return sorted((REPOSITORY / folder).rglob("*.py"))


def every_module() -> Iterator[Path]:
    for top in sorted(REPOSITORY.iterdir()):
        if top.suffix == ".py":
            yield top
        elif top.is_dir() and not top.name.startswith(".") and top.name != "runs":
            yield from sorted(top.rglob("*.py"))


def imports(source: str, package: tuple[str, ...] = ()) -> list[str]:
    """The dotted names that `source`, a module inside `package`, imports; `from a import b` is `a.b`."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                names += [alias.name for alias in node.names]
            case ast.ImportFrom():
                parents = package[: len(package) + 1 - node.level] if node.level else ()
                base = ".".join((*parents, *([node.module] if node.module else [])))
                names += [f"{base}.{alias.name}" for alias in node.names]
            case ast.Call(
                func=ast.Name("__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(str(name)), *_],
            ):
                names.append(name)
            case _:
                pass
    return names


def forbidden_imports(source: str, room: Room, *, package: tuple[str, ...] = ()) -> list[str]:
    def allowed(name: str) -> bool:
        return name.partition(".")[0] not in OURS or any(f"{name}.".startswith(f"{may}.") for may in room.may_import)

    return [name for name in imports(source, package) if not allowed(name)]


def pickles(source: str) -> list[str]:
    """The ways in which `source` reads or writes pickles."""
    found = [name for name in imports(source) if name.partition(".")[0] in PICKLES]
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.keyword(arg="allow_pickle", value=value) if ast.unparse(value) != "False":
                found.append(f"allow_pickle={ast.unparse(value)}")
            case _:
                pass
    return found


@pytest.mark.parametrize("room", ROOMS.values(), ids=ROOMS)
def test_a_room_imports_only_what_its_arrows_allow(room: Room) -> None:
    bad: list[str] = []
    for path in modules(room.folder):
        below = path.relative_to(REPOSITORY / room.folder).parent.parts
        names = forbidden_imports(path.read_text(), room, package=(*room.package.split("."), *below))
        bad += [f"{path.relative_to(REPOSITORY)} imports {name}" for name in names]
    assert not bad, f"{bad}; {room.folder} may import of ours only {list(room.may_import)}"


def test_the_rooms_are_where_the_checks_look() -> None:
    for folder in ("policy", "training", "serving", "clients/python/kilolayer"):
        assert modules(folder), f"{folder} holds no module"
    assert {REPOSITORY / "policy/spec.py", Path(__file__)} <= set(every_module())


@pytest.mark.parametrize(
    ("folder", "source", "name"),
    [
        ("policy", "import training.trainer", "training.trainer"),
        ("policy", "from serving import engine", "serving.engine"),
        ("policy", "def late():\n    import kilolayer", "kilolayer"),
        ("policy", "from ..training import trainer", "training.trainer"),
        ("training", "from serving.engine.engine import Engine", "serving.engine.engine.Engine"),
        ("training", "import importlib\nimportlib.import_module('serving')", "serving"),
        ("training", "__import__('kilolayer')", "kilolayer"),
        ("serving", "import kilolayer", "kilolayer"),
        ("serving", "from kilolayer import PolicyClient", "kilolayer.PolicyClient"),
        ("serving", "import kilolayer.v11", "kilolayer.v11"),
        ("serving", "if TYPE_CHECKING:\n    from training.config import TrainConfig", "training.config.TrainConfig"),
        ("clients/python/kilolayer", "from policy.spec import PolicySpec", "policy.spec.PolicySpec"),
        ("clients/sim", "from training import trainer", "training.trainer"),
        ("clients/sim", "import policy", "policy"),
        ("clients/sim", "from clients import python", "clients.python"),
        ("scripts", "import kilolayer", "kilolayer"),
        ("scripts", "from tests import fakes", "tests.fakes"),
    ],
)
def test_a_forbidden_import_is_noticed(folder: str, source: str, name: str) -> None:
    room = ROOMS[folder]
    assert forbidden_imports(source, room, package=tuple(room.package.split("."))) == [name]


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("policy", "import jax\nfrom policy.spec import PolicySpec\nfrom .networks import Layer\nfrom . import acting"),
        ("training", "from policy import bundle\nfrom training.envs import registry"),
        (
            "serving",
            "from kilolayer.v1 import policy_pb2\nimport kilolayer.v1.policy_pb2_grpc\nfrom kilolayer import v1",
        ),
        ("clients/sim", "from clients.sim import fleet\nfrom . import fleet"),
        (
            "clients/sim",
            "import kilolayer\nfrom training import envs\nfrom training.envs.core.goal_env import GoalEnv",
        ),
        ("scripts", "import subprocess\nimport policyengine"),
    ],
)
def test_an_allowed_import_is_not(folder: str, source: str) -> None:
    room = ROOMS[folder]
    assert forbidden_imports(source, room, package=tuple(room.package.split("."))) == []


@pytest.mark.parametrize("folder", RUN_AS_SCRIPTS)
def test_no_module_hides_one_of_python_or_of_a_dependency(folder: str) -> None:
    installed = metadata.packages_distributions().keys() - OURS
    own = {path.stem for path in (REPOSITORY / folder).glob("*") if path.suffix == ".py" or path.is_dir()}
    assert not own & (installed | sys.stdlib_module_names), f"rename them: python {folder}/... puts them first"
    assert {"numpy", "jax", "grpc"} <= installed  # a rename to one of these would be noticed


def test_nothing_reads_or_writes_pickles() -> None:
    bad = {str(path.relative_to(REPOSITORY)): pickles(path.read_text()) for path in every_module()}
    assert not {path: ways for path, ways in bad.items() if ways}


@pytest.mark.parametrize(
    ("source", "way"),
    [
        ("import pickle", "pickle"),
        ("from cloudpickle import dumps", "cloudpickle.dumps"),
        ("import dill as json", "dill"),
        ("numpy.load(path, allow_pickle=True)", "allow_pickle=True"),
        ("numpy.load(path, allow_pickle=trusted)", "allow_pickle=trusted"),
    ],
)
def test_a_pickle_is_noticed(source: str, way: str) -> None:
    assert pickles(source) == [way]


def test_refusing_pickles_is_not() -> None:
    assert pickles("import picklejuice\nnumpy.load(path, allow_pickle=False)") == []
