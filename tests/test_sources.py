"""Two rules for every source file: no name hides a module of Python or of a dependency, and nothing uses pickle."""

import ast
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
OURS = frozenset({"benchmarks", "clients", "deploy", "kilolayer", "policy", "scripts", "serving", "tests", "training"})
RUN_AS_SCRIPTS = (  # each is first on sys.path
    *("training", "training/policy_command", "serving", "clients/sim"),
    *("deploy", "scripts", "benchmarks", "docs"),
)
PICKLES_ITS_OWN = "tests/test_exceptions.py"  # copies exceptions as a process pool does
PICKLES = frozenset({"_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"})


def every_module() -> Iterator[Path]:
    for top in sorted(REPOSITORY.iterdir()):
        if top.suffix == ".py":
            yield top
        elif top.is_dir() and not top.name.startswith(".") and top.name != "runs":
            yield from sorted(top.rglob("*.py"))


def imports(tree: ast.Module) -> list[str]:
    """The dotted names that a module imports; `from a import b` is `a.b`."""
    names: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names += [alias.name for alias in node.names]
            case ast.ImportFrom(level=0, module=str(module)):
                names += [f"{module}.{alias.name}" for alias in node.names]
            case ast.Call(
                func=ast.Name("__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(str(name)), *_],
            ):
                names.append(name)
            case _:
                pass
    return names


def pickles(source: str) -> list[str]:
    """The ways in which `source` reads or writes pickles."""
    tree = ast.parse(source)
    found = [name for name in imports(tree) if name.partition(".")[0] in PICKLES]
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="allow_pickle", value=value) if ast.unparse(value) != "False":
                found.append(f"allow_pickle={ast.unparse(value)}")
            case _:
                pass
    return found


@pytest.mark.parametrize("folder", RUN_AS_SCRIPTS)
def test_no_file_has_the_name_of_a_module_of_python_or_of_a_dependency(folder: str) -> None:
    installed = metadata.packages_distributions().keys() - OURS
    own = {path.stem for path in (REPOSITORY / folder).glob("*") if path.suffix == ".py" or path.is_dir()}
    assert not own & (installed | sys.stdlib_module_names), f"rename them: python {folder}/... puts them first"
    assert {"numpy", "jax", "grpc"} <= installed  # a rename to one of these would be noticed


def test_nothing_reads_or_writes_pickles() -> None:
    modules = list(every_module())
    assert {REPOSITORY / "policy/spec.py", Path(__file__)} <= set(modules)
    bad = {str(path.relative_to(REPOSITORY)): pickles(path.read_text()) for path in modules}
    assert {path for path, ways in bad.items() if ways} == {PICKLES_ITS_OWN}


def test_nothing_draws_with_pyplot() -> None:
    """It chooses a backend, and keeps figures, for the whole process of whoever imports us."""
    using = [path for path in every_module() if any("pyplot" in name for name in imports(ast.parse(path.read_text())))]
    assert using == []


@pytest.mark.parametrize(
    ("source", "way"),
    [
        ("import pickle", "pickle"),
        ("from cloudpickle import dumps", "cloudpickle.dumps"),
        ("import dill as json", "dill"),
        ("def late():\n    import shelve", "shelve"),
        ("__import__('marshal')", "marshal"),
        ("import importlib\nimportlib.import_module('joblib')", "joblib"),
        ("numpy.load(path, allow_pickle=True)", "allow_pickle=True"),
        ("numpy.load(path, allow_pickle=trusted)", "allow_pickle=trusted"),
    ],
)
def test_a_pickle_is_noticed(source: str, way: str) -> None:
    assert pickles(source) == [way]


@pytest.mark.parametrize(
    "source", ["import picklejuice", "from . import pickle", "numpy.load(path, allow_pickle=False)"]
)
def test_other_names_and_refusals_of_pickles_are_not(source: str) -> None:
    assert pickles(source) == []
