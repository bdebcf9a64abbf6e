"""The committed descriptors and type stubs are those that protos/kilolayer gives, and define what generated code would.

tests/serving holds those of other protocols.
"""

import subprocess
import sys
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from kilolayer.v1 import admin_pb2, admin_pb2_grpc, policy_pb2, policy_pb2_grpc
from scripts.generate_stubs import StubError, generate

REPOSITORY = Path(__file__).parents[1]
COMMITTED = REPOSITORY / "clients/python"
POLICY = "kilolayer/v1/policy"


def stubs(folder: Path) -> dict[str, bytes]:
    """What `make protos` writes below `folder`, by relative path."""
    paths = [path for pattern in ("*.binpb", "*_pb2*.pyi") for path in folder.rglob(pattern)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def altered_protos(folder: Path, old: str, new: str) -> Path:
    source = folder / "protos" / POLICY
    source.parent.mkdir(parents=True)
    text = (REPOSITORY / "protos" / POLICY).with_suffix(".proto").read_text()
    assert old in text
    source.with_suffix(".proto").write_text(text.replace(old, new))
    return folder / "protos"


def test_the_committed_stubs_are_up_to_date(tmp_path: Path) -> None:
    generate(REPOSITORY / "protos", tmp_path)
    generated, committed = stubs(tmp_path), stubs(COMMITTED)
    assert sorted(generated) == [
        "kilolayer/_internal/blocks.binpb",
        "kilolayer/_internal/blocks_pb2.pyi",
        "kilolayer/v1/admin.binpb",
        "kilolayer/v1/admin_pb2.pyi",
        f"{POLICY}.binpb",
        f"{POLICY}_pb2.pyi",
    ]
    assert committed.keys() == generated.keys(), "run `make protos` and commit what it wrote"
    stale = [name for name, text in generated.items() if committed[name] != text]
    assert not stale, f"{stale} differ from protos/: run `make protos` and commit what it wrote"


def test_a_changed_proto_changes_the_stubs(tmp_path: Path) -> None:
    field = "uint64 sequence = 5;"
    generate(altered_protos(tmp_path, field, f"{field} bool urgent = 100;"), tmp_path)
    for name in (f"{POLICY}.binpb", f"{POLICY}_pb2.pyi"):
        assert b"urgent" in (tmp_path / name).read_bytes()
        assert b"urgent" not in (COMMITTED / name).read_bytes()


def test_a_proto_that_does_not_compile_is_reported(tmp_path: Path) -> None:
    protos = altered_protos(tmp_path, "uint64 sequence = 5;", "uint65 sequence = 5;")
    with pytest.raises(StubError, match=r"protoc cannot compile .*policy\.proto"):
        generate(protos, tmp_path)


@pytest.mark.parametrize(
    ("service", "stub", "servicer", "expected"),
    [
        (
            policy_pb2.DESCRIPTOR.services_by_name["Policy"],
            policy_pb2_grpc.PolicyStub,
            policy_pb2_grpc.PolicyServicer,
            ["Act", "ActStream", "Score", "Describe", "List", "Report"],
        ),
        (
            admin_pb2.DESCRIPTOR.services_by_name["PolicyAdmin"],
            admin_pb2_grpc.PolicyAdminStub,
            admin_pb2_grpc.PolicyAdminServicer,
            ["Status", "Load", "Unload", "Switch", "Rollback", "Follow", "Canary", "Shadow", "Drain"],
        ),
    ],
    ids=["Policy", "PolicyAdmin"],
)
def test_the_stub_and_the_servicer_have_every_method_of_the_service(
    service: Any, stub: type, servicer: type, expected: list[str]
) -> None:
    assert [method.name for method in service.methods] == expected
    assert [name for name in vars(servicer) if not name.startswith("_")] == expected
    assert list(stub.__annotations__) == expected


def test_the_stub_calls_the_servicer() -> None:
    class Doubling(policy_pb2_grpc.PolicyServicer):
        def Act(self, request: Any, context: Any) -> Any:  # noqa: N802 - named by the protocol
            return policy_pb2.ActResponse(sequence=2 * request.sequence)

        def ActStream(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802 - named by the protocol
            return (self.Act(request, context) for request in request_iterator)

    server = grpc.server(futures.ThreadPoolExecutor(2))
    policy_pb2_grpc.add_PolicyServicer_to_server(Doubling(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    request = policy_pb2.ActRequest(sequence=21)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = policy_pb2_grpc.PolicyStub(channel)
        assert stub.Act(request) == policy_pb2.ActResponse(sequence=42)
        assert [reply.sequence for reply in stub.ActStream(iter([request, request]))] == [42, 42]
        for method, message in (
            (stub.Score, policy_pb2.ScoreRequest()),
            (stub.Describe, policy_pb2.DescribeRequest()),
            (stub.List, policy_pb2.ListRequest()),
            (stub.Report, policy_pb2.ReportRequest()),
        ):
            with pytest.raises(grpc.RpcError) as failure:
                method(message)
            assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED  # pyright: ignore[reportAttributeAccessIssue]
    server.stop(0).wait()


def test_a_servicer_of_the_admin_service_offers_what_it_overrides() -> None:
    class Known(admin_pb2_grpc.PolicyAdminServicer):
        def Status(self, request: Any, context: Any) -> Any:  # noqa: N802 - named by the protocol
            return admin_pb2.StatusResponse(policies=[admin_pb2.PolicyStatus(policy=request.policy)])

    server = grpc.server(futures.ThreadPoolExecutor(1))
    admin_pb2_grpc.add_PolicyAdminServicer_to_server(Known(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = admin_pb2_grpc.PolicyAdminStub(channel)
        assert stub.Status(admin_pb2.StatusRequest(policy="ant")).policies[0].policy == "ant"
        for name in ("Load", "Unload", "Switch", "Rollback", "Follow", "Canary", "Shadow", "Drain"):
            with pytest.raises(grpc.RpcError) as failure:
                getattr(stub, name)(getattr(admin_pb2, f"{name}Request")())
            assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED  # pyright: ignore[reportAttributeAccessIssue]
    server.stop(0).wait()


@pytest.mark.parametrize("order", ["kilolayer.v1 generated", "generated kilolayer.v1"])
def test_code_that_a_user_generates_lives_beside_ours(tmp_path: Path, order: str) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "protos", f"--python_out={tmp_path}", f"{POLICY}.proto"]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    (tmp_path / POLICY).parent.rename(tmp_path / "generated")  # in kilolayer/v1 it would hide ours
    program = "\n".join(f"from {package} import policy_pb2" for package in order.split())
    path = f"{COMMITTED}:{tmp_path}"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nprint(policy_pb2.Failure(code=3, reason='invalid_request'))"],
        env={"PYTHONPATH": path},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.stdout == 'code: 3\nreason: "invalid_request"\n\n', done.stderr
