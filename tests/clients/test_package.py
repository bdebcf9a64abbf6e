"""The client as a distribution: what it declares, and what importing it brings along."""

import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import kilolayer
from scripts.client_matrix import build_wheel

REPOSITORY = Path(__file__).parents[2]
ALLOWED = {"grpcio", "numpy", "protobuf"}


def test_the_client_declares_three_dependencies_and_one_extra() -> None:
    project = tomllib.loads((REPOSITORY / "clients/python/pyproject.toml").read_text())["project"]
    names = {requirement.split(">=")[0] for requirement in project["dependencies"]}
    assert names == ALLOWED
    extras = project["optional-dependencies"]
    assert {name: {each.split(">=")[0] for each in needed} for name, needed in extras.items()} == {
        "local": {"onnxruntime", "safetensors"}
    }
    installed = [each for each in metadata.requires("kilolayer") or [] if "extra ==" not in each]
    assert {requirement.split(">=")[0] for requirement in installed} == ALLOWED


def test_importing_the_client_imports_nothing_else_of_ours_and_no_jax() -> None:
    program = (
        "import sys; before = set(sys.modules); import kilolayer;"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    imported = set(subprocess.check_output([sys.executable, "-c", program], text=True, cwd=REPOSITORY).split())
    third_party = {name for name in imported - sys.stdlib_module_names if not name.startswith(("_cython", "cython"))}
    # grpcio needs typing_extensions, and imports its own add-ons where they are installed.
    expected = {
        "kilolayer",
        "google",
        "grpc",
        "grpc_health",
        "grpc_reflection",
        "grpc_tools",
        "numpy",
        "typing_extensions",
    }
    assert "kilolayer" in imported
    assert third_party <= expected, f"importing kilolayer also imports {sorted(third_party - expected)}"


def test_the_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    package = Path(kilolayer.__file__).parent
    with zipfile.ZipFile(build_wheel(tmp_path)) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("kilolayer/")}
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert packed == {f"kilolayer/{path.relative_to(package).as_posix()}" for path in files}
    assert {"kilolayer/py.typed", "kilolayer/v1/policy.binpb", "kilolayer/_internal/blocks.binpb"} <= packed


def test_every_exported_name_exists_and_is_documented() -> None:
    assert kilolayer.__all__ == sorted(kilolayer.__all__)
    for name in kilolayer.__all__:
        assert getattr(kilolayer, name).__doc__, f"{name} has no docstring"
