"""RepositoryService: the Open Inference Protocol's calls that load and unload versions, for the admin address.

A model is a policy. Triton's protocol has no version in these calls, so the parameter `version` names one.
"""

from collections.abc import Iterator, Mapping

from serving.api.admin_actions import AdminActions, Subject
from serving.api.open_inference import open_inference_pb2 as pb
from serving.api.rpc import RpcService
from serving.errors import DeploymentError, InvalidRequestError, Reason, echo
from serving.policies.status import PolicyStatus

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
_VERSION = "version"
_IGNORED = "unload_dependents"  # Triton's clients always send it; no policy depends on another
_READY, _UNAVAILABLE = "READY", "UNAVAILABLE"  # Triton's states of a model


class RepositoryService:
    """Answers RepositoryIndex, RepositoryModelLoad and RepositoryModelUnload. `actions` makes the methods."""

    def __init__(self, actions: AdminActions) -> None:
        self._actions = actions

    def service(self) -> RpcService:
        """Return the methods, for a transport."""
        action = self._actions.action
        load, unload = pb.RepositoryModelLoadRequest, pb.RepositoryModelUnloadRequest
        return RpcService(
            _SERVICE.full_name,
            unary={
                "RepositoryIndex": self._actions.query(
                    "repository_index", pb.RepositoryIndexRequest, answer=self._index
                ),
                "RepositoryModelLoad": action("repository_load", load, subject=_subject, perform=self._load),
                "RepositoryModelUnload": action("repository_unload", unload, subject=_subject, perform=self._unload),
            },
            streams={},
        )

    def _index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        _require_no_repository(request.repository_name)
        policies = sorted(self._actions.deployment.status(), key=lambda status: status.policy)
        models = [model for status in policies for model in _models(status)]
        return pb.RepositoryIndexResponse(
            models=[model for model in models if model.state == _READY or not request.ready]
        )

    async def _load(self, request: pb.RepositoryModelLoadRequest) -> pb.RepositoryModelLoadResponse:
        _check(request.repository_name, request.parameters)
        about = _subject(request)
        if about.version:
            await self._actions.deployment.load(*self._actions.find(about))
        else:
            self._actions.status(about.policy)  # raises for an unknown one
            await self._actions.deployment.take_up(about.policy)
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: pb.RepositoryModelUnloadRequest) -> pb.RepositoryModelUnloadResponse:
        _check(request.repository_name, request.parameters)
        about = _subject(request)
        if not about.version:
            live = self._actions.status(about.policy).live
            raise DeploymentError(
                Reason.VERSION_IS_LIVE,
                f"version {live} is live and cannot be unloaded; name another one with the parameter {_VERSION}",
            )
        await self._actions.deployment.unload(*self._actions.find(about))
        return pb.RepositoryModelUnloadResponse()


def _subject(request: pb.RepositoryModelLoadRequest | pb.RepositoryModelUnloadRequest) -> Subject:
    parameter = request.parameters.get(_VERSION)
    if parameter is None:
        return Subject(request.model_name)
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("string_param", "int64_param"):
        raise InvalidRequestError(f"the parameter {_VERSION} must be a string or an integer")
    return Subject(request.model_name, str(getattr(parameter, kind)))


def _check(repository: str, parameters: Mapping[str, pb.ModelRepositoryParameter]) -> None:
    _require_no_repository(repository)
    if unknown := sorted(parameters.keys() - {_VERSION, _IGNORED}):
        raise InvalidRequestError(
            f"the parameter {echo(unknown[0])} is not supported; {_VERSION} is, and policies have no configuration or"
            " files of their own"
        )


def _require_no_repository(name: str) -> None:
    if name:
        raise InvalidRequestError(f"repository_name must be empty, got {echo(name)}; policies are in no repository")


def _models(status: PolicyStatus) -> Iterator[pb.RepositoryIndexResponse.ModelIndex]:
    """Yield the versions of a policy, oldest first: those that are loaded, and those that failed a check."""
    loaded = dict.fromkeys(status.loaded, (_READY, ""))
    refused = {each.version: (_UNAVAILABLE, f"{each.reason}: {each.detail}") for each in status.refused}
    for version, (state, reason) in sorted((refused | loaded).items()):
        yield pb.RepositoryIndexResponse.ModelIndex(
            name=status.policy, version=str(version), state=state, reason=reason
        )
