"""Restore what was loaded and tried before a restart, while the live version already answers."""

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
        try:
            await _load_previous(policy, kept, loader)
            await _begin_trials(policy, kept, loader, trials)
        except Exception:  # a bug must not keep operators waiting
            _LOGGER.exception("restoring the versions of %s fails", policy.name)
        policy.to_restore = None
    policy.restored.set()


async def _load_previous(policy: PolicyDecisions, kept: PolicyState, loader: VersionLoader) -> None:
    for version in kept.previous:
        if version == policy.live:
            continue
        try:
            await loader.host.prepare(policy.name, version)
        except (RefusedVersionError, StartupError) as error:
            _LOGGER.warning("a rollback to version %d of %s is not possible: %s", version, policy.name, error)
        else:
            policy.previous.append(version)


async def _begin_trials(policy: PolicyDecisions, kept: PolicyState, loader: VersionLoader, trials: Trials) -> None:
    try:
        if canary := kept.canary:
            await loader.load(policy, canary.version)
            share = CanaryShare(policy=policy.name, candidate=canary.version, share=canary.share)
            await trials.begin_canary(policy, share, rule=canary.rule)
        if kept.shadow:
            await loader.load(policy, kept.shadow.version)
            await trials.begin_shadow(policy, kept.shadow)
    except DeploymentError as error:
        _LOGGER.warning("what was tried of %s before the restart cannot go on: %s", policy.name, error)
