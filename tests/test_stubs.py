"""The committed stubs are those that protos/kilolayer gives; tests/serving holds those of other protocols."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
COMMITTED = REPOSITORY / "clients/python"


def generate(folder: Path, protos: Path) -> dict[str, str]:
    """Write the stubs of every file of ours below `protos` into `folder`; return the texts by relative path."""
    sources = sorted((protos / "kilolayer").rglob("*.proto"))
    outputs = (f"--{kind}={folder}" for kind in ("python_out", "pyi_out", "grpc_python_out"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(protos), *outputs, *map(str, sources)]
    subprocess.run(command, check=True)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*_pb2*.py*")}


def test_the_committed_stubs_are_up_to_date(tmp_path: Path) -> None:
    generated = generate(tmp_path, REPOSITORY / "protos")
    committed = {
        path.relative_to(COMMITTED).as_posix(): path.read_text()
        for path in COMMITTED.rglob("*_pb2*")
        if path.suffix in {".py", ".pyi"}
    }
    assert "kilolayer/v1/policy_pb2.py" in generated
    assert committed.keys() == generated.keys(), "run `make protos` and commit what it wrote"
    stale = [name for name, text in generated.items() if committed[name] != text]
    assert not stale, f"{stale} differ from protos/: run `make protos` and commit what it wrote"


def test_a_changed_proto_changes_the_stubs(tmp_path: Path) -> None:
    protos, stubs = tmp_path / "protos", tmp_path / "stubs"
    source = "kilolayer/v1/policy.proto"
    (protos / source).parent.mkdir(parents=True)
    stubs.mkdir()
    text = (REPOSITORY / "protos" / source).read_text()
    (protos / source).write_text(text.replace("uint64 sequence = 5;", "uint64 sequence = 5; bool urgent = 100;"))
    changed = generate(stubs, protos)["kilolayer/v1/policy_pb2.py"]
    assert changed != (COMMITTED / "kilolayer/v1/policy_pb2.py").read_text()
