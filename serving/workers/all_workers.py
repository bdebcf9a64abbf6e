"""AllWorkers: carries out decisions about versions in every worker, and brings new workers to the same state.

A version counts as loaded once every worker has it; if one refuses it, or does not respond, the others unload it. A
switch is then only a message to each; if it fails in one, the others go back. A worker that ends takes part in nothing
more; its replacement joins with what is loaded by then. If it lacks memory for a former version, it joins without that
version, and loads it when the version is made live or tried. Every wait for a worker has a deadline.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from serving.errors import RefusedVersionError, StartupError
from serving.workers.worker_process import WorkerEndedError, WorkerProcess

_LOGGER = logging.getLogger(__name__)

LOAD_S = 600.0
"""Most seconds to load a version; a deep one may compile for minutes."""
_ANSWER_S = 1.0  # a worker that does not answer in this time carries out a switch once it responds again
_UNLOAD_S = 60.0  # at most, to answer the requests of a version that is unloaded
_CHECK_S = 1.0  # between two checks whether the workers respond


_Kind: TypeAlias = Literal["set_canary", "set_shadow"]
_Trial: TypeAlias = tuple[_Kind, str]  # and a policy


@dataclasses.dataclass(eq=False)
class _Member:
    worker: WorkerProcess
    live: dict[str, int]
    loaded: set[tuple[str, int]]
    trials: dict[_Trial, tuple[int, float]] = dataclasses.field(default_factory=dict)
    lacks: set[tuple[str, int]] = dataclasses.field(default_factory=set)  # former versions that it could not load


class AllWorkers:
    """The workers of a supervisor, as a `serving.policies.deployment.VersionHost`.

    Args:
        live: the live version of every policy, which every worker has loaded when it joins.
        on_lost: called with a policy and a former live version that a new worker could not load any more; it is
            unloaded everywhere.
        on_rejected: called with the reason, one word, once for a version that fails a check in one or more workers.
    """

    def __init__(
        self,
        live: Mapping[str, int],
        *,
        on_lost: Callable[[str, int], Awaitable[None]],
        on_rejected: Callable[[str], None],
    ) -> None:
        self._live = dict(live)
        self._loaded = set(live.items())
        self._trials: dict[_Trial, tuple[int, float]] = {}  # with their versions and shares; a share of 0: it has ended
        self._on_lost = on_lost
        self._on_rejected = on_rejected
        self._members: list[_Member] = []
        self._preparing: Counter[tuple[str, int]] = Counter()
        self._undoing: set[asyncio.Task[None]] = set()

    @property
    def live(self) -> Mapping[str, int]:
        """The live version of every policy."""
        return self._live

    async def join(self, worker: WorkerProcess, *, live: Mapping[str, int]) -> None:
        """Bring a worker, which has compiled the versions `live`, to the state of the others. It then takes part.

        Raises:
            WorkerEndedError: it ended meanwhile.
            RefusedVersionError, StartupError: it cannot load a version that is live now, or does not answer.
        """
        member = _Member(worker, dict(live), set(live.items()))
        try:
            while member not in self._members:  # the others may change while it loads
                async with asyncio.timeout(LOAD_S):
                    await self._approach(member)
        except TimeoutError as error:
            raise StartupError(
                f"worker {worker.pid} has not loaded what the others have: no answer within {LOAD_S:g} s"
            ) from error

    async def _approach(self, member: _Member) -> None:
        """Make one change that a new worker lacks; if it lacks none, let it take part."""
        if missing := self._loaded - member.loaded - (member.lacks - self._needed()):
            await self._catch_up(member, *min(missing))
        elif behind := [policy for policy, version in self._live.items() if member.live[policy] != version]:
            await _switch(member, behind[0], self._live[behind[0]])
        elif differing := [trial for trial in self._trials if member.trials.get(trial) != self._trials[trial]]:
            await _set_trial(member, differing[0], *self._trials[differing[0]])
        elif surplus := member.loaded - self._loaded:
            await _unload(member, *min(surplus))
        else:
            self._members.append(member)

    def _needed(self) -> set[tuple[str, int]]:
        """Return the policies with their versions that are live or tried."""
        tried = {(policy, version) for (_, policy), (version, share) in self._trials.items() if share}
        return tried | {*self._live.items()}

    async def prepare(self, policy: str, version: int) -> None:
        """Load a version in every worker, or in none.

        Raises:
            RefusedVersionError, StartupError: one of them cannot load it, or does not respond.
        """
        self._preparing[policy, version] += 1
        try:
            while lacking := [member for member in self._members if (policy, version) not in member.loaded]:
                try:
                    await self._load(lacking, policy, version)
                except (RefusedVersionError, StartupError) as error:
                    if isinstance(error, RefusedVersionError):
                        self._on_rejected(error.reason)
                    if (policy, version) not in self._loaded:
                        having = [member for member in self._members if (policy, version) in member.loaded]
                        await self._each(having, lambda member: _unload(member, policy, version), timeout_s=_UNLOAD_S)
                    raise
            self._loaded.add((policy, version))
        finally:
            self._preparing[policy, version] -= 1

    async def switch(self, policy: str, version: int) -> None:
        """Make a loaded version live in every worker, or in none.

        Raises:
            StartupError: a worker cannot. The others are back at the version before.
        """
        await self._load_where_lacking(policy, version)
        before, self._live[policy] = self._live[policy], version
        try:
            await self._each(self._members, lambda member: _switch(member, policy, version), timeout_s=_ANSWER_S)
        except Exception:
            self._live[policy] = before
            await self._each(self._members, lambda member: _switch(member, policy, before), timeout_s=_ANSWER_S)
            raise

    async def unload(self, policy: str, version: int) -> None:
        """Unload a version that is not live, in every worker."""
        self._loaded.discard((policy, version))
        await self._each(self._members, lambda member: _unload(member, policy, version), timeout_s=_UNLOAD_S)

    async def set_canary(self, policy: str, version: int, *, share: float) -> None:
        """Answer a share of the robots with a loaded version, in every worker."""
        await self._set_trial(("set_canary", policy), version, share)

    async def set_shadow(self, policy: str, version: int, *, share: float) -> None:
        """Compare a share of the live version's rows with a loaded version, in every worker."""
        await self._set_trial(("set_shadow", policy), version, share)

    async def _set_trial(self, trial: _Trial, version: int, share: float) -> None:
        """Begin, change or end a trial in every worker, or in none."""
        if share:
            await self._load_where_lacking(trial[1], version)
        before = self._trials.get(trial, (version, 0.0))
        self._trials[trial] = version, share
        try:
            await self._each(
                self._members, lambda member: _set_trial(member, trial, version, share), timeout_s=_ANSWER_S
            )
        except Exception:
            self._trials[trial] = before
            await self._each(self._members, lambda member: _set_trial(member, trial, *before), timeout_s=_ANSWER_S)
            raise

    async def _load_where_lacking(self, policy: str, version: int) -> None:
        """Load a version, which the others have, in the workers that have joined without it. Raises StartupError."""
        if any((policy, version) in member.lacks for member in self._members):
            try:
                await self.prepare(policy, version)
            except RefusedVersionError as error:
                raise StartupError(
                    f"a worker has no version {version} of {policy}, and cannot load it: {error}"
                ) from error

    async def _load(self, lacking: Sequence[_Member], policy: str, version: int) -> None:
        """Load a version in the workers `lacking`. One that loads it too late unloads it. Errors as of `prepare`."""

        def undo(member: _Member) -> None:
            undoing = asyncio.create_task(self._unload_unless_wanted(member, policy, version))
            self._undoing.add(undoing)
            undoing.add_done_callback(self._undoing.discard)

        late = await self._each(
            lacking, lambda member: _prepare(member, policy, version), timeout_s=LOAD_S, on_late_end=undo
        )
        if late:
            worker = late[0].worker
            problem = "does not respond" if worker.problem else f"has not loaded it within {LOAD_S:g} s"
            raise StartupError(
                f"cannot load version {version} of {policy}: worker {worker.pid} {problem}; end it with SIGKILL, and"
                " the server replaces it"
            )

    async def _unload_unless_wanted(self, member: _Member, policy: str, version: int) -> None:
        if not self._preparing[policy, version] and (policy, version) not in self._loaded | {*member.live.items()}:
            with contextlib.suppress(WorkerEndedError):
                await _unload(member, policy, version)

    async def _catch_up(self, member: _Member, policy: str, version: int) -> None:
        try:
            await _prepare(member, policy, version)
        except RefusedVersionError as error:
            if self._live[policy] == version:
                raise
            self._on_rejected(error.reason)
            await self._on_lost(policy, version)
            for (kind, of), (lost, _) in list(self._trials.items()):
                if (of, lost) == (policy, version):
                    await self._set_trial((kind, of), version, 0.0)
            await self.unload(policy, version)
        except StartupError as error:
            if (policy, version) in self._needed():
                raise
            member.lacks.add((policy, version))
            _LOGGER.warning(
                "worker %d serves without version %d of %s, and refuses requests that name it: %s",
                member.worker.pid,
                version,
                policy,
                error,
            )

    async def _each(
        self,
        members: Iterable[_Member],
        act: Callable[[_Member], Awaitable[None]],
        *,
        timeout_s: float,
        on_late_end: Callable[[_Member], None] | None = None,
    ) -> list[_Member]:
        """Let each of `members` act; those that end take part in nothing more. Return those that do not answer.

        Args:
            timeout_s: after which no more is waited. Workers that do not respond are not waited for so long.
            on_late_end: called when one that did not answer has acted; None: then the change is right, too.

        Raises:
            Exception: the first error of a worker, after all have ended or answered.
        """
        tasks = {asyncio.ensure_future(act(member)): member for member in members}
        for task in tasks:  # so that asyncio does not log an error that comes after this was cancelled, at a stop
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        late = await _unanswered(tasks, timeout_s)
        for task in late:
            task.add_done_callback(functools.partial(_end_late, member=tasks[task], on_late_end=on_late_end))
            if not on_late_end:
                _LOGGER.warning("worker %d does not answer; it makes the change when it does", tasks[task].worker.pid)
        errors = {tasks[task]: error for task in tasks.keys() - late if (error := task.exception())}
        ended = {member for member, error in errors.items() if isinstance(error, WorkerEndedError)}
        self._members = [member for member in self._members if member not in ended]
        if problem := next((error for member, error in errors.items() if member not in ended), None):
            raise problem
        return [tasks[task] for task in late]


async def _unanswered(tasks: Mapping[asyncio.Task[None], _Member], timeout_s: float) -> set[asyncio.Task[None]]:
    """Wait for `tasks` of workers. Return those left after `timeout_s`, or of which no worker responds any more."""
    loop = asyncio.get_running_loop()
    ends_s, pending = loop.time() + timeout_s, {*tasks}
    while pending and (left_s := ends_s - loop.time()) > 0:
        _, pending = await asyncio.wait(pending, timeout=min(left_s, _CHECK_S))
        if all(tasks[task].worker.problem for task in pending):
            break
    return pending


def _end_late(task: asyncio.Task[None], *, member: _Member, on_late_end: Callable[[_Member], None] | None) -> None:
    if task.cancelled():
        return
    if error := task.exception():
        if not isinstance(error, WorkerEndedError):
            _LOGGER.error("worker %d answered late and failed: %s", member.worker.pid, error)
    elif on_late_end:
        on_late_end(member)


async def _prepare(member: _Member, policy: str, version: int) -> None:
    await member.worker.prepare(policy, version)
    member.loaded.add((policy, version))
    member.lacks.discard((policy, version))


async def _switch(member: _Member, policy: str, version: int) -> None:
    member.live[policy] = version
    await member.worker.switch(policy, version)


async def _set_trial(member: _Member, trial: _Trial, version: int, share: float) -> None:
    member.trials[trial] = version, share
    kind, policy = trial
    begin = member.worker.set_canary if kind == "set_canary" else member.worker.set_shadow
    await begin(policy, version, share=share)


async def _unload(member: _Member, policy: str, version: int) -> None:
    member.loaded.discard((policy, version))
    member.lacks.discard((policy, version))
    await member.worker.unload(policy, version)
