"""Restore what was loaded and tried before a restart, while the live version already answers."""

import dataclasses
import logging

from serving.errors import DeploymentError, RefusedVersionError, StartupError
from serving.policies.canary import CanaryShare
from serving.policies.decisions import PolicyDecisions
from serving.policies.loading import VersionLoader
from serving.policies.state_file import PolicyState
from serving.policies.trials import Trials

_LOGGER = logging.getLogger(__name__)


async def restore(policy: PolicyDecisions, loader: VersionLoader, trials: Trials) -> None:
    """Load the former live versions, and go on with the canary and the shadow. What fails is logged and forgotten."""
    if kept := policy.to_restore:
        for step in (_load_previous, _begin_canary, _begin_shadow):  # one that fails does not stop the others
            try:
                await step(policy, kept, loader, trials)
            except Exception:  # a bug must not keep operators waiting
                _LOGGER.exception("restoring the versions of %s fails", policy.name)
        policy.to_restore = None
    policy.restored.set()


async def _load_previous(policy: PolicyDecisions, kept: PolicyState, loader: VersionLoader, _trials: Trials) -> None:
    for version in kept.previous:
        if version == policy.live:
            continue
        try:
            await loader.host.prepare(policy.name, version)
        except (RefusedVersionError, StartupError) as error:
            _LOGGER.warning("a rollback to version %d of %s is not possible: %s", version, policy.name, error)
        else:
            policy.previous.append(version)


async def _begin_canary(policy: PolicyDecisions, kept: PolicyState, loader: VersionLoader, trials: Trials) -> None:
    if not (canary := kept.canary):
        return
    try:
        await loader.load(policy, canary.version)
        share = CanaryShare(policy=policy.name, candidate=canary.version, share=canary.share)
        await trials.begin_canary(policy, share, rule=canary.rule)
    except DeploymentError as error:
        _LOGGER.warning(
            "the canary of version %d of %s from before the restart cannot go on: %s",
            canary.version,
            policy.name,
            error,
        )
    policy.to_restore = dataclasses.replace(kept, canary=None)


async def _begin_shadow(policy: PolicyDecisions, kept: PolicyState, loader: VersionLoader, trials: Trials) -> None:
    if not (shadow := kept.shadow):
        return
    try:
        await loader.load(policy, shadow.version)
        await trials.begin_shadow(policy, shadow)
    except DeploymentError as error:
        _LOGGER.warning(
            "the shadow of version %d of %s from before the restart cannot go on: %s",
            shadow.version,
            policy.name,
            error,
        )
