"""LocalModel: computes actions and energies, with the checks that a server makes before and after computing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kilolayer._arguments import ActArguments, ScoreArguments
from kilolayer._local.backend import Backend, Critic
from kilolayer._local.export import Export
from kilolayer._local.network import Floats
from kilolayer._local.noise import seeded_noise
from kilolayer._local.request_checks import RefusedError, RequestChecks
from kilolayer._local.seen_range import SeenRange


class Answer(NamedTuple):
    """What was computed for a call."""

    results: Floats  # actions [rows, chunk_dim], or energies [rows]
    batch_rows: int  # computed together, candidates included
    compute_s: float
    out_of_range: bool  # whether a state is far from those of training


class LocalModel:
    """The checks and the computation of one policy. Threads may share it."""

    def __init__(self, export: Export, backend: Backend) -> None:
        sizes, spec = export.description, export.spec
        self._export = export
        self._backend = backend
        self._checks = RequestChecks(
            name=sizes.name,
            state_names=sizes.state_names,
            goal_dim=sizes.goal_dim,
            action_dim=sizes.action_dim,
            action_chunk=sizes.action_chunk,
            max_rows=sizes.max_rows,
        )
        self._seen_range = SeenRange(
            spec["seen_low"], spec["seen_high"], std=spec["seen_std"], quaternions=spec["state_quaternions"]
        )

    def act(self, arguments: ActArguments) -> Answer:
        """Return the actions [rows, chunk_dim] in [-1, 1]. Raises RefusedError."""
        critic = None
        if arguments.best_of is not None:
            critic = self._critic("choose the best of several actions", "use another mode, or another policy")
        state, goal = self._checks.act(arguments)
        out_of_range = not self._seen_range.contains(state)
        rows, candidates = len(state), arguments.best_of or 1
        began_s = time.perf_counter()
        noise = None
        if arguments.seed is not None:
            size = self._export.chunk_dim
            noise = seeded_noise(arguments.seed, rows=rows, candidates=candidates, size=size)
        if candidates > 1:
            state, goal = np.repeat(state, candidates, axis=0), np.repeat(goal, candidates, axis=0)
        action = _computed(lambda: self._backend.actor(state, goal, noise))
        results = action
        if critic is not None:
            energy = _computed(lambda: critic(state, action, goal))
            action = _best(action, energy, candidates=candidates)
            results = np.concatenate([results, energy[:, None]], axis=1)
        compute_s = time.perf_counter() - began_s
        self._refuse_not_finite(results, state=state, goal=goal)
        return Answer(action, len(state), compute_s, out_of_range)

    def score(self, arguments: ScoreArguments) -> Answer:
        """Return the energies [rows]. Raises RefusedError."""
        critic = self._critic("score actions", "choose another policy")
        state, action, goal = self._checks.score(arguments)
        began_s = time.perf_counter()
        energy = _computed(lambda: critic(state, action, goal))
        compute_s = time.perf_counter() - began_s
        self._refuse_not_finite(energy[:, None], state=state, goal=goal)
        return Answer(energy, len(state), compute_s, out_of_range=False)

    def _critic(self, ability: str, advice: str) -> Critic:
        """Return the critic. Raises RefusedError if there is none."""
        if self._backend.critic is not None:
            return self._backend.critic
        problem = "has no critic"
        if self._export.has_critic:
            problem, advice = "was exported without its critic", "export it again with --critic"
        happened = f"{self._export.description.name} {problem}, so it cannot {ability}; {advice}"
        raise RefusedError("FAILED_PRECONDITION", "no_critic", happened)

    def _refuse_not_finite(self, results: Floats, *, state: Floats, goal: Floats) -> None:
        """Raise RefusedError if `results: [rows, any]` are not finite."""
        if np.isfinite(results).all():
            return
        bad = ~np.isfinite(results).all(axis=1)
        if self._seen_range.explains(state[bad], goal[bad]):
            raise RefusedError(
                "INVALID_ARGUMENT",
                "extreme_input",
                "the policy gave NaN or infinity, because a state or a goal is far from those of its training",
            )
        raise RefusedError("INTERNAL", "non_finite_action", "the policy gave NaN or infinity")


def _computed(compute: Callable[[], Floats]) -> Floats:
    """Return what `compute` returns. Raises RefusedError for any exception: numpy and ONNX Runtime have many."""
    try:
        return compute()
    except Exception as error:
        raise RefusedError("INTERNAL", "computation_failed", "the policy could not be computed") from error


def _best(action: Floats, energy: Floats, *, candidates: int) -> Floats:
    """Return of each row's candidates the one with the highest energy: [rows, chunk_dim]."""
    best = energy.reshape(-1, candidates).argmax(axis=1)
    return action.reshape(len(best), candidates, -1)[np.arange(len(best)), best]
