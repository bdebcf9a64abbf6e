"""AdminService: the methods of `kilolayer.v1.PolicyAdmin`."""

import dataclasses
import math
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar

from kilolayer.v1 import admin_pb2 as pb
from serving.api.admin_actions import AdminActions, Subject
from serving.api.rpc import RpcService, UnaryMethod
from serving.errors import InvalidRequestError
from serving.policies.sequential_test import DecisionRule
from serving.policies.status import CanaryStatus, PolicyStatus, ShadowStatus

_NamesVersion: TypeAlias = pb.LoadRequest | pb.UnloadRequest | pb.SwitchRequest | pb.CanaryRequest | pb.ShadowRequest
_MAX_LOGARITHM = 700.0  # of a float64
_Version = TypeVar("_Version", pb.LoadRequest, pb.UnloadRequest, pb.SwitchRequest)
_Reply: TypeAlias = Callable[..., pb.LoadResponse | pb.UnloadResponse | pb.SwitchResponse]


class AdminService:
    """Answers the methods of the service.

    Args:
        actions: makes the methods.
        drain: begins to stop the server, and returns immediately.
    """

    def __init__(self, actions: AdminActions, *, drain: Callable[[], None]) -> None:
        self._actions = actions
        self._drain = drain

    def service(self) -> RpcService:
        """Return the methods, for a transport."""
        action, deployment = self._actions.action, self._actions.deployment
        return RpcService(
            "kilolayer.v1.PolicyAdmin",
            unary={
                "Status": self._actions.query("status", pb.StatusRequest, answer=self._status),
                "Load": self._change("load", pb.LoadRequest, deployment.load, reply=pb.LoadResponse),
                "Unload": self._change("unload", pb.UnloadRequest, deployment.unload, reply=pb.UnloadResponse),
                "Switch": self._change("switch", pb.SwitchRequest, deployment.switch, reply=pb.SwitchResponse),
                "Rollback": action("rollback", pb.RollbackRequest, subject=self._of_policy, perform=self._rollback),
                "Follow": action("follow", pb.FollowRequest, subject=self._of_follow, perform=self._follow),
                "Canary": action("canary", pb.CanaryRequest, subject=self._of_trial, perform=self._canary),
                "Shadow": action("shadow", pb.ShadowRequest, subject=self._of_trial, perform=self._shadow),
                "Drain": action("drain", pb.DrainRequest, subject=lambda _: Subject(), perform=self._begin_draining),
            },
            streams={},
        )

    def _change(
        self,
        name: str,
        request_type: type[_Version],
        change: Callable[[str, int], Awaitable[None]],
        *,
        reply: _Reply,
    ) -> UnaryMethod:
        """Return the method of a change to a version."""

        async def perform(request: _Version) -> pb.LoadResponse | pb.UnloadResponse | pb.SwitchResponse:
            policy, version = self._actions.find(self._of_version(request))
            await change(policy, version)
            return reply(policy=self._encoded(policy))

        return self._actions.action(name, request_type, subject=self._of_version, perform=perform)

    def _status(self, request: pb.StatusRequest) -> pb.StatusResponse:
        chosen = [self._actions.status(request.policy)] if request.policy else self._actions.deployment.status()
        return pb.StatusResponse(policies=map(_encode, sorted(chosen, key=lambda status: status.policy)))

    async def _rollback(self, request: pb.RollbackRequest) -> pb.RollbackResponse:
        policy = self._actions.status(request.policy).policy
        done = await self._actions.deployment.rollback(policy)
        return pb.RollbackResponse(
            policy=self._encoded(policy),
            rolled_back_version=str(done.rolled_back),
            ended_canary=done.ended_canary,
        )

    async def _follow(self, request: pb.FollowRequest) -> pb.FollowResponse:
        policy = self._actions.status(request.policy).policy
        upcoming = await self._actions.deployment.follow(policy, on=not request.off)
        next_version = "" if upcoming is None else str(upcoming)
        return pb.FollowResponse(policy=self._encoded(policy), next_version=next_version)

    async def _canary(self, request: pb.CanaryRequest) -> pb.CanaryResponse:
        deployment = self._actions.deployment
        if request.off:
            policy = self._actions.status(request.policy).policy
            await deployment.end_canary(policy)
        else:
            policy, version = self._actions.find(self._of_version(request))
            rule = _decode_rule(request.rule) if request.HasField("rule") else None
            await deployment.canary(policy, version, share=request.share, rule=rule)
        return pb.CanaryResponse(policy=self._encoded(policy))

    async def _shadow(self, request: pb.ShadowRequest) -> pb.ShadowResponse:
        deployment = self._actions.deployment
        if request.off:
            policy = self._actions.status(request.policy).policy
            await deployment.end_shadow(policy)
        else:
            policy, version = self._actions.find(self._of_version(request))
            await deployment.shadow(policy, version, share=request.share)
        return pb.ShadowResponse(policy=self._encoded(policy))

    async def _begin_draining(self, _request: pb.DrainRequest) -> pb.DrainResponse:
        self._drain()
        return pb.DrainResponse()

    def _of_policy(self, request: pb.RollbackRequest) -> Subject:
        return Subject(self._actions.named(request.policy))

    def _of_follow(self, request: pb.FollowRequest) -> Subject:
        return Subject(self._actions.named(request.policy), off=request.off)

    def _of_version(self, request: _NamesVersion) -> Subject:
        return Subject(self._actions.named(request.policy), request.version)

    def _of_trial(self, request: pb.CanaryRequest | pb.ShadowRequest) -> Subject:
        return Subject(self._actions.named(request.policy), request.version, off=request.off)

    def _encoded(self, policy: str) -> pb.PolicyStatus:
        return _encode(self._actions.status(policy))


def _decode_rule(rule: pb.CanaryRule) -> DecisionRule:
    """Return the rule of a request, in which 0 stands for the default.

    Raises:
        InvalidRequestError: a value is out of range.
    """
    try:
        return DecisionRule(**{field.name: value for field, value in rule.ListFields()})
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error


def _encode(status: PolicyStatus) -> pb.PolicyStatus:
    return pb.PolicyStatus(
        policy=status.policy,
        live_version=str(status.live),
        previous_versions=map(str, status.previous),
        loaded_versions=map(str, status.loaded),
        following=status.following,
        wanted=status.wanted,
        refused=[
            pb.RefusedVersion(version=str(each.version), reason=each.reason, detail=each.detail)
            for each in status.refused
        ],
        canary=status.canary and _encode_canary(status.canary),
        shadow=status.shadow and _encode_shadow(status.shadow),
        rolled_back_versions=map(str, status.rolled_back),
    )


def _encode_canary(canary: CanaryStatus) -> pb.CanaryStatus:
    return pb.CanaryStatus(
        version=str(canary.version),
        share=canary.share,
        rule=canary.rule and pb.CanaryRule(**dataclasses.asdict(canary.rule)),
        live_episodes=canary.live_episodes,
        candidate_episodes=canary.candidate_episodes,
        better_evidence=_exp(canary.better),
        worse_evidence=_exp(canary.worse),
        loading=canary.loading,
    )


def _encode_shadow(shadow: ShadowStatus) -> pb.ShadowStatus:
    return pb.ShadowStatus(version=str(shadow.version), share=shadow.share, loading=shadow.loading)


def _exp(logarithm: float) -> float:
    return math.exp(min(logarithm, _MAX_LOGARITHM))
