"""Reload: at SIGHUP, a server reads its settings again and takes the rules about versions.

Everything else stays as it was at the start; the log names what has changed and needs a restart.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterable

from serving.config import ConfigError, ServeConfig
from serving.engine.thread_priority import run_in_thread
from serving.errors import StartupError
from serving.policies.deployment import Deployment
from serving.policies.source import PolicySource, resolve

_LOGGER = logging.getLogger(__name__)

_RULES = frozenset({"versions", "follow", "policy_settings"})  # of ServeConfig; the last is compared in `PolicySource`
_RULES_OF_POLICY = frozenset({"wanted", "follow"})  # of PolicySource


class Reload:
    """Reads the settings of a running server again.

    Args:
        config: what it was started with.
        sources: the policies of `config`.
        read: reads the settings as at the start; raises ConfigError.
    """

    def __init__(self, config: ServeConfig, sources: Iterable[PolicySource], read: Callable[[], ServeConfig]) -> None:
        self._config = config
        self._sources = {source.name: source for source in sources}
        self._read = read
        self._reading = asyncio.Lock()
        self._is_next = False  # another call waits for its turn, and reads what changes until then

    async def __call__(self, deployment: Deployment) -> None:
        """Take the rules about versions, and poll the folders of policies. Wrong settings change nothing.

        Calls during one that reads are made one call after it.
        """
        if self._is_next:
            return
        self._is_next = True
        async with self._reading:
            self._is_next = False
            await self._reload(deployment)

    async def _reload(self, deployment: Deployment) -> None:
        _LOGGER.info("reading the settings again, and polling the folders of policies")
        try:
            config = await asyncio.to_thread(self._read)
            sources = await run_in_thread(resolve, config)
        except (ConfigError, StartupError) as error:
            _LOGGER.error("the settings stay as they are: %s", error)
            deployment.poll_now()
            return
        if changed := [*_changed(self._config, config, apart_from=_RULES), *self._changed_policies(sources)]:
            _LOGGER.warning("a restart is needed to take what has changed: %s", ", ".join(changed))
        deployment.take_rules([source for source in sources if source.name in self._sources])

    def _changed_policies(self, sources: Iterable[PolicySource]) -> list[str]:
        """Return what has changed apart from rules, as a key of the file of settings would name it."""
        after = {source.name: source for source in sources}
        names = sorted(self._sources.keys() ^ after.keys())
        return [f"policies.{name}" for name in names] + [
            f"policies.{name}.{field}"
            for name, before in self._sources.items()
            if name in after
            for field in _changed(before, after[name], apart_from=_RULES_OF_POLICY)
        ]


def _changed(before: ServeConfig | PolicySource, after: object, *, apart_from: Iterable[str]) -> list[str]:
    """Return the names of the fields that differ."""
    names = (field.name for field in dataclasses.fields(before) if field.name not in apart_from)
    return [name for name in names if getattr(before, name) != getattr(after, name)]
