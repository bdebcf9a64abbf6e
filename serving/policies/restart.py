"""RestartPlan: the decisions of the last run that still hold, and the versions that a start tries. No JAX."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

from serving.config import ServeConfig
from serving.errors import BucketError, StartupError, shortage
from serving.policies.source import PolicySource, candidates, copied
from serving.policies.state_file import PolicyState, StateFile, VersionRule, choose
from serving.sockets import TcpAddress
from serving.user_folders import state_folder

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RestartPlan:
    """What a server starts with."""

    state_file: StateFile | None  # where decisions are kept; None: nowhere
    kept: Mapping[str, PolicyState]  # what was decided before, for the policies for which that holds
    choices: tuple[tuple[int, ...], ...]  # the versions of each policy to try, the most wanted first


def plan_restart(config: ServeConfig, sources: Sequence[PolicySource]) -> RestartPlan:
    """Read the decisions of the last run, and say in the log which hold.

    Raises:
        StartupError: a folder of policies cannot be read, or another server keeps its decisions in the same folder.
    """
    state_file = _state_file(config)
    kept: Mapping[str, PolicyState] = {}
    if state_file and (problem := state_file.problem()):
        _LOGGER.warning("%s", problem)
        state_file = None
    if state_file:
        state_file.lock()
    if state_file and (state := state_file.read()):
        chosen = choose(state, {source.name: VersionRule(str(source.wanted), source.follow) for source in sources})
        _LOGGER.info("%s", chosen.line)
        kept = chosen.kept
    return RestartPlan(state_file, kept, tuple(first_choices(source, kept.get(source.name)) for source in sources))


def first_choices(source: PolicySource, kept: PolicyState | None = None) -> tuple[int, ...]:
    """Return the versions to try at the start, the most wanted first.

    Args:
        kept: what was decided before. Its live version is wanted, then the older ones; newer ones only if there is no
            other, because the operator may not have wanted them. Those that were rolled back come last.

    Raises:
        StartupError: the folder cannot be read, or the bucket, of which there are no copies either.
    """
    is_live_known = True
    try:
        versions = candidates(source)
    except BucketError as error:
        versions = copied(source)
        if not versions:
            raise
        _LOGGER.warning("%s; starting with the versions that were copied before", error)
        is_live_known = kept is not None and kept.live in versions
    except OSError as error:
        hint = shortage(error) or "check its permissions"
        raise StartupError(f"cannot read {source.path} ({error.strerror}); {hint}") from error
    if kept is None or isinstance(source.wanted, int):
        return tuple(versions)
    live = (kept.live,) if is_live_known else ()
    older = sorted((version for version in versions if version < kept.live), reverse=True)
    others = [*older, *sorted(version for version in versions if version > kept.live)]
    return *live, *sorted(others, key=lambda version: version in kept.rolled_back)


def _state_file(config: ServeConfig) -> StateFile | None:
    """Return where decisions are kept. With a port that the system chooses, there is no name for a default folder."""
    if config.state_dir:
        return StateFile(config.state_dir)
    if isinstance(config.address, TcpAddress) and config.address.port == 0:
        return None
    return StateFile(state_folder(config.address))
