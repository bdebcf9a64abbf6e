"""Which token may call which method: every method of every service, with every kind of token."""

import re
from pathlib import Path

import grpc
import pytest

import serving
from serving.access.roles import TOKEN_ROLES, Role
from serving.api import reflection
from tests.docs.blocks import ROOT
from tests.serving.access.services import Services, outcome, started
from tests.serving.access.token_samples import bearer

SERVING = Path(serving.__file__).parent
OF_POLICY, OF_ADMIN, OF_HEALTH = "/kilolayer.v1.Policy/", "/kilolayer.v1.PolicyAdmin/", "/grpc.health.v1.Health/"
OPEN_INFERENCE = "/inference.GRPCInferenceService/"
ROLES = {
    Role.ACT: [
        *(OF_POLICY + name for name in ("Act", "ActStream", "Score")),
        *(OPEN_INFERENCE + name for name in ("ModelInfer", "ModelStreamInfer")),
    ],
    Role.DESCRIBE: [
        *(OF_POLICY + name for name in ("Describe", "List")),
        *(OPEN_INFERENCE + name for name in ("ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig")),
        OPEN_INFERENCE + "ModelStatistics",
    ],
    Role.REPORT: [OF_POLICY + "Report"],
    Role.ADMIN: [
        *(OF_ADMIN + name for name in ("Status", "Load", "Unload", "Switch", "Rollback", "Follow", "Canary", "Shadow")),
        OF_ADMIN + "Drain",
        *(OPEN_INFERENCE + name for name in ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")),
    ],
    Role.ANYONE: [
        *(OF_HEALTH + name for name in ("Check", "List", "Watch")),
        *(OPEN_INFERENCE + name for name in ("ServerLive", "ServerReady")),
    ],
}
UNAUTHENTICATED = ("UNAUTHENTICATED", "unauthenticated")
DENIED = ("PERMISSION_DENIED", "permission_denied")
TEXT = "the call is not allowed; it needs a token with the method's role, and the log says more"


def test_every_service_is_in_the_matrix(tmp_path: Path) -> None:
    files = [path.name for path in SERVING.rglob("*.py") if re.search(r"\breturn RpcService\(", path.read_text())]
    files.remove("reflection.py")  # only with --reflection
    assert len(Services(tmp_path).services) == len(files)


def test_every_method_declares_the_role_that_it_should(tmp_path: Path) -> None:
    services = (*Services(tmp_path).services, reflection.service())
    declared = {
        f"/{service.name}/{name}": method.role
        for service in services
        for name, method in {**service.unary, **service.streams}.items()
    }
    of_reflection = {"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.ANYONE}
    assert declared == {path: role for role, paths in ROLES.items() for path in paths} | of_reflection


def test_the_documentation_lists_the_methods_of_each_role() -> None:
    header = "| role | methods of `kilolayer.v1` | methods of the Open Inference Protocol |"
    rows = (ROOT / "docs/security.md").read_text().split(header)[1].split("\n\n")[0].splitlines()[2:]
    documented = {row.split(" | ")[0].strip("| "): set(re.findall(r"`(\w+)`", row.split(" | ", 1)[1])) for row in rows}
    roles = {f"`{role}`": {path.split("/")[2] for path in paths} for role, paths in ROLES.items()}
    roles["none is needed"] = {"ServerLive", "ServerReady"}
    del roles["`anyone`"]
    roles["`admin`"] = {"PolicyAdmin", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"}
    assert documented == roles


@pytest.mark.parametrize("reads_itself", [False, True])
async def test_only_the_right_token_may_call_a_method(tmp_path: Path, reads_itself: bool) -> None:
    tokens = {
        "none": (),
        "malformed": (("authorization", "Basic YTpi"),),
        "wrong": bearer("nobody"),
        **{role: bearer(f"of-{role}") for role in TOKEN_ROLES},
    }
    expected_counts = {"missing": 0, "malformed": 0, "unknown": 0, "role": 0}
    causes = {"none": "missing", "malformed": "malformed", "wrong": "unknown"}
    async with started(Services(tmp_path, reads_itself=reads_itself)) as services:
        for needed, paths in ROLES.items():
            for path in paths:
                for kind, metadata in tokens.items():
                    call = services.call(path, metadata=metadata)
                    if path == OF_HEALTH + "Watch":
                        assert await call.read() is not grpc.aio.EOF
                        call.cancel()
                        continue
                    got = await outcome(call)
                    if needed is Role.ANYONE or kind == needed:
                        assert got not in (UNAUTHENTICATED, DENIED), (path, kind)
                    else:
                        assert got == (DENIED if kind in TOKEN_ROLES else UNAUTHENTICATED), (path, kind)
                        assert await call.details() == TEXT
                        expected_counts[causes.get(kind, "role")] += 1
        counts = {cause: services.count("refused_total", reason=cause) for cause in expected_counts}
        assert counts == expected_counts
        assert counts == {"missing": 25, "malformed": 25, "unknown": 25, "role": 75}


async def test_without_tokens_anyone_may_call(tmp_path: Path) -> None:
    async with started(Services(tmp_path, None)) as services:
        assert await services.call(OF_POLICY + "List").code() is grpc.StatusCode.OK
        assert await services.call(OF_POLICY + "List", metadata=bearer("nobody")).code() is grpc.StatusCode.OK
